"""For whoever writes a runtime: what bitfleet's own are held to, as tests to run on another. Needs pytest and torch."""

import pytest

pytest.register_assert_rewrite("planner.testing.contract")
