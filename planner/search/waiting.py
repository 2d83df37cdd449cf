"""Optuna's sampler of proposals that wait: what it was given first, then what it makes of all that was measured."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from planner.search.base import Problem
from planner.search.crew import Crew
from planner.search.study import SOURCE, WORKER, Landscape
from supernet.space import Subnet

TOGETHER = 3
"""Subnets that are measured together: the full model's part is computed once for them."""
FORGOTTEN = timedelta(minutes=10)
"""A trial that runs for longer was left by a process that is gone, and its subnet may be tried again."""


class WaitingSampler(BaseSampler):
    """Of several at one study, each has the number of its `worker`. What it proposes by itself has the `name` of its
    search for a source."""

    def __init__(self, problem: Problem, landscape: Landscape, name: str, worker: int = 0) -> None:
        self.problem, self.landscape, self.name, self.worker = problem, landscape, name, worker
        self.options = {
            "+".join(units): ["+".join(map(str, option)) for option in options]
            for units, options in problem.space.blocks
        }
        self.distributions: dict[str, BaseDistribution] = {
            name: CategoricalDistribution(options) for name, options in self.options.items()
        }
        self.starts: list[tuple[Subnet, str]] = []
        self.waiting: list[tuple[Subnet, str]] = []
        self.slopes = 0  # that were taken

    @abstractmethod
    def more(self, study: Study, measured: Mapping[Subnet, float], known: Collection[Subnet]) -> Sequence[Subnet]:
        """What shall be measured next, of what is not `known`, measured or being measured; nothing where there is
        nothing to be won."""

    def start(self, starts: Sequence[tuple[Subnet, str]], crew: Crew) -> None:
        """Let this worker's part of the starts wait. Nobody proposes more before all are measured."""
        self.starts = list(starts)
        self.waiting += crew.part(self.starts)

    def wait(self, subnet: Subnet, source: str) -> None:
        self.waiting.append((subnet, source))

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self.distributions

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self.proposed()

    def proposed(self) -> dict[str, Any]:
        """The parameters of what waits longest, which does no more."""
        subnet, _ = self.waiting.pop(0)
        blocks = zip(self.distributions, self.problem.space.blocks, strict=True)
        return {name: "+".join(str(subnet[unit]) for unit in units) for name, (units, _) in blocks}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        raise ValueError(f"a parameter is one of the space's blocks, got {param_name}")

    def subnet(self, parameters: Mapping[str, Any]) -> Subnet:
        numbers = (self.distributions[name].to_internal_repr(parameters[name]) for name in self.distributions)
        return self.problem.space.at([int(number) for number in numbers])

    def measured(self, study: Study) -> dict[Subnet, tuple[float, str]]:
        """Every subnet that was measured, by whichever process, with its loss and who proposed it. What else a study
        holds, from another version or by another hand, is passed over."""
        trials = filter(self._ours, study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))
        return {self.subnet(one.params): (one.values[0], one.user_attrs[SOURCE]) for one in trials}

    def _ours(self, trial: FrozenTrial) -> bool:
        values, options = trial.params, self.options
        return (
            isinstance(trial.user_attrs.get(SOURCE), str)
            and values.keys() == options.keys()
            and all(values[name] in options[name] for name in options)
        )

    def prepare(self, study: Study) -> None:
        """Forget what waits and was measured; where nothing is left, let more wait, if there is any."""
        measured = self.measured(study)
        self.waiting = [(subnet, source) for subnet, source in self.waiting if subnet not in measured]
        if self.waiting or any(subnet not in measured for subnet, _ in self.starts):
            return
        known = {*measured, *(self.subnet(trial.params) for trial in self.running(study))}
        losses = {subnet: loss for subnet, (loss, _) in measured.items()}
        self.waiting = [(subnet, self.name) for subnet in self.more(study, losses, known)]

    def running(self, study: Study, worker: str | None = None) -> list[FrozenTrial]:
        """What is measured now, by one `worker` or by anybody."""
        started = datetime.now() - FORGOTTEN
        trials = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        young = (one for one in trials if one.datetime_start is not None and one.datetime_start > started)
        mine = (one for one in young if worker is None or one.user_attrs.get(WORKER) == worker)
        return [one for one in mine if self._ours(one)]

    def begun_before(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether a proposal is that of an earlier trial: of two that propose it at once, the first measures it."""
        if trial.user_attrs[SOURCE] != self.name:
            return False
        done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        others = [*self.running(study), *filter(self._ours, done)]
        return any(other.number < trial.number and other.params == trial.params for other in others)

    def fail(self, study: Study, worker: str) -> list[tuple[Subnet, str]]:
        """What a worker that is gone was at, which nobody measures now."""
        found = []
        for trial in self.running(study, worker):
            study.tell(trial.number, state=TrialState.FAIL)
            found.append((self.subnet(trial.params), trial.user_attrs[SOURCE]))
        return found

    def take_over(self, study: Study, crew: Crew, number: int) -> None:
        """Let what a worker was at wait here, and those of its starts that it never came to."""
        failed = self.fail(study, crew.names[number])
        self.waiting += failed + [one for one in crew.part(self.starts, number) if one not in failed]
