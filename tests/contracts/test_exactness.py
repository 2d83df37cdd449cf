"""Packages of every supported family and variant answer as the original model does, over its whole context.

The graph is exact: with the model's own float weights it has the model's logits. What is left in a package of 8 bits is
rounding. Attention is made to matter, so that a window, a rotation or a bias that is lost shows.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import onnxruntime_genai as genai
import pytest
import torch

from planner.request import Workload
from planner.runtimes.onnxruntime.export import MODEL, WEIGHTS, write_model
from planner.runtimes.onnxruntime.fit import fit
from planner.runtimes.onnxruntime.graphs import template_for
from planner.runtimes.onnxruntime.runtime import OnnxRuntime
from planner.runtimes.onnxruntime.settings import CONFIG
from planner.runtimes.onnxruntime.standin import facts_of
from supernet.exact import in_float64
from supernet.rotary import rotaries_of
from supernet.space import Choice, Subnet
from supernet.spec import ModelSpec
from tests.planner.runtime_fixtures import VARIANTS, RoundedModel, mixed, save_tiny

PROMPT, ANSWER, CHUNK = 200, 24, 64
STRETCHES = 8
KL = 0.01  # nats per token, in each stretch
SCALES = {"attention": 8.0, "embedding": 16.0}
RUNTIME = OnnxRuntime()


class Case:
    """A variant's model, its package of 8 bits, and what the model says of a window as long as its context."""

    def __init__(self, name: str, folder: Path) -> None:
        family, changes = VARIANTS[name]
        self.files = RoundedModel(save_tiny(family, folder / "model", **SCALES, **changes))
        self.spec, self.package = self.files.spec, folder / "package"
        self.subnet = Subnet.of({unit.name: Choice(8, 16) for unit in self.spec.units})
        self.package.mkdir()
        write_model(self.files, self.subnet, self.spec.max_context, 1, self.package)
        self.ids = np.random.default_rng(0).integers(3, self.spec.vocab_size, (1, self.spec.max_context))
        with torch.no_grad():
            self.expected = self.files.model(torch.from_numpy(self.ids)).logits.numpy()


@pytest.fixture(scope="module", params=VARIANTS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(request.param, tmp_path_factory.mktemp("case"))


def logits(model: Any, spec: ModelSpec, ids: np.ndarray, weights: Path | None = None) -> np.ndarray:
    """Of every position: the head reads all that the graph computes, not the last of it."""
    source = {output: node for node in model.graph.node for output in node.output}
    head = next(node for node in model.graph.node if node.name == "/lm_head/MatMul")
    while source[head.input[0]].op_type in ("Gather", "Unsqueeze"):
        head.input[0] = source[head.input[0]].input[0]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    if weights is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(weights))
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    empty = np.zeros((1, spec.num_kv_heads, 0, spec.head_dim), np.float32)
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": np.arange(ids.shape[1])[None]}
    feed = {i.name: feed.get(i.name, empty) for i in session.get_inputs()}
    return np.asarray(session.run(["logits"], feed)[0])


def divergences(expected: np.ndarray, found: np.ndarray) -> np.ndarray:
    """KL in nats, the mean of each stretch of positions."""
    ours, theirs = (torch.from_numpy(x).double().log_softmax(-1) for x in (expected, found))
    each = (ours.exp() * (ours - theirs)).sum(-1)[0]
    return np.array([float(stretch.mean()) for stretch in each.chunk(STRETCHES)])


def test_the_graph_is_the_model(case: Case) -> None:
    """With float weights in place of codes: what differs is the order of additions."""
    template, config = template_for(case.spec, case.files.model.config), case.files.model.config
    graph = template.model.graph
    looked_up = {node.input[0] for node in graph.node if node.op_type == "Gather"}
    weights = case.files.weights
    kept = [i for i in graph.initializer if i.name not in {**template.weights, **template.vectors}]
    for name, parts in template.weights.items():
        rows = np.concatenate([weights[f"{part.tensor}.weight"][part.start : part.stop] for part in parts])
        kept.append(onnx.numpy_helper.from_array(np.ascontiguousarray(rows if name in looked_up else rows.T), name))
    for name, vector in template.vectors.items():
        joined = np.concatenate([weights[part.tensor] for part in vector.parts]) + np.float32(vector.offset)
        kept.append(onnx.numpy_helper.from_array(joined, name))
    del graph.initializer[:]
    graph.initializer.extend(kept)
    add = lambda name, array: onnx.numpy_helper.from_array(array, name)  # noqa: E731
    fit(template.model, facts_of(config, rotaries_of(config)), case.spec.vocab_size, case.spec.max_context, add)
    assert divergences(case.expected, logits(template.model, case.spec, case.ids)).max() < 1e-7


def test_a_proof_is_made_by_the_model_in_float64(case: Case) -> None:
    """The same function, each number of it in float64: that of float32 is within float32's precision of it."""
    model = copy.deepcopy(case.files.model)
    dtypes: set[torch.dtype] = set()
    for module in model.modules():
        module.register_forward_hook(lambda _, __, out: dtypes.add(getattr(out, "dtype", torch.float64)))
    with in_float64(model, rotaries_of(model.config), case.ids.shape[1]), torch.no_grad():
        said = model(torch.from_numpy(case.ids)).logits.numpy()
    assert dtypes == {torch.float64}
    assert divergences(case.expected, said).max() < 1e-7


def test_a_package_of_8_bits_answers_as_the_original_model_does(case: Case) -> None:
    model = onnx.load(case.package / MODEL, load_external_data=False)
    found = divergences(case.expected, logits(model, case.spec, case.ids, case.package))
    assert found.max() < KL, found


def test_a_package_of_mixed_bits_answers_as_its_subnet_does(case: Case, tmp_path: Path) -> None:
    """2, 4 and 8 bits side by side lose much; what the runtime's rounding adds to that is little beside it."""
    subnet = mixed(case.spec)
    write_model(case.files, subnet, case.spec.max_context, 1, tmp_path)
    with torch.no_grad():
        ours = case.files.dequantized(subnet)(torch.from_numpy(case.ids)).logits.numpy()
    found = logits(onnx.load(tmp_path / MODEL, load_external_data=False), case.spec, case.ids, tmp_path)
    added, lost = divergences(ours, found), divergences(case.expected, found)
    assert added.max() < KL, added
    assert added.mean() < 0.05 * lost.mean(), (added, lost)


def test_answers_do_not_depend_on_how_the_prompt_is_read(case: Case) -> None:
    """Token by token from the KV cache, after a prompt in chunks or whole: always what one pass over all says."""
    model = genai.Model(genai.Config(str(case.package)))
    answers = []
    for chunk in (CHUNK, PROMPT):
        options = genai.GeneratorParams(model)
        length = PROMPT + ANSWER
        options.set_search_options(max_length=length, min_length=length, do_sample=False, chunk_size=chunk)
        generator = genai.Generator(model, options)
        generator.append_tokens(case.ids[0, :PROMPT].astype(np.int32))
        while not generator.is_done():
            generator.generate_next_token()
        answers.append(np.array(generator.get_sequence(0), np.int64))
    assert np.array_equal(*answers)
    whole = logits(onnx.load(case.package / MODEL, load_external_data=False), case.spec, answers[0][None], case.package)
    stops = json.loads((case.package / CONFIG).read_text())["model"]["eos_token_id"]
    whole[..., stops] = -np.inf  # none of them ends an answer before its least length
    assert np.array_equal(whole[0, PROMPT - 1 : -1].argmax(-1), answers[0][PROMPT:])


def test_predicted_bytes_are_the_bytes_on_disk(case: Case) -> None:
    holding = RUNTIME.holding(case.spec)
    predicted = sum(holding.unit_bytes(unit, case.subnet[unit.name]) for unit in case.spec.units)
    predicted += holding.rest_bytes(Workload(case.spec.max_context, 1, 16), Path())
    assert predicted == (case.package / WEIGHTS).stat().st_size
    assert holding.refusal() is None
