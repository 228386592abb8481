"""Devices, clusters, and files laid over the table."""

import dataclasses
from pathlib import Path

import pytest

from deploy.plan.hardware import DEVICES, Cluster, read_cluster, read_devices
from deploy.plan.problem import Problem
from deploy.plan.search import plan_of
from pretrain.config import with_overrides
from pretrain.errors import RunError
from pretrain.recipes.registry import recipe


@pytest.mark.parametrize(
    ("text", "nodes", "per_node", "name"),
    [
        ("4x8xH200", 4, 8, "H200"),
        ("8xa100-40", 1, 8, "A100-40"),
        ("2xcpu", 1, 2, "cpu"),
        ("128x8xMI300X", 128, 8, "MI300X"),
    ],
)
def test_clusters(text: str, nodes: int, per_node: int, name: str) -> None:
    cluster = read_cluster(text, DEVICES)
    assert (cluster.num_nodes, cluster.per_node, cluster.name) == (nodes, per_node, name)
    assert cluster.device is DEVICES[name] and cluster.size == nodes * per_node


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("H100", "not NODESxDEVICESxNAME"),
        ("0x8xH100", "not NODESxDEVICESxNAME"),
        ("4x8xH20", "did you mean H200"),
        ("4x8xGaudi-3", "known: A100-40, A100-80, H100"),
    ],
)
def test_what_is_no_cluster(text: str, said: str) -> None:
    with pytest.raises(RunError, match=said):
        read_cluster(text, DEVICES)


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_a_file_is_laid_over_the_table(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"mine.{suffix}"
    path.write_text('{"H100": {"network_gbit_per_s": 200}, "GH200": {"like": "H200", "memory_gb": 96}}')
    devices = read_devices(path)
    assert devices["H100"].network_gbit_per_s == 200 and devices["H100"].tflops == DEVICES["H100"].tflops
    assert devices["GH200"].memory_gb == 96 and devices["GH200"].tflops == DEVICES["H200"].tflops
    assert devices["B200"] is DEVICES["B200"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("H100: {memory: 80}", "unknown field H100.memory; did you mean memory_gb"),
        ("H100: {memory_gb: -1}", "memory_gb: must be a number above 0"),
        ("H100: {matmul_share: 1.5}", "is a share"),
        ("H100: {tflops: fast}", "tflops: must be a number"),
        ("H100: {is_cpu: 1}", "is_cpu: must be true or false, got 1"),
        ("new: {tflops: 1}", "new: missing"),
        ("new: {like: H101}", "unknown device 'H101'"),
        ("[1, 2]", "expected devices by name"),
        ("{", "neither YAML nor JSON"),
    ],
)
def test_wrong_files_are_named(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(RunError, match=said):
        read_devices(path)


def test_a_processor_by_another_name_is_one(tmp_path: Path) -> None:
    """What is kept there depends on the kernels, not on what a file calls the device."""
    path = tmp_path / "mine.yaml"
    path.write_text("epyc: {like: cpu}")
    devices = read_devices(path)
    config = with_overrides(recipe("image-tiny"), ["--model.encoder.attention-dropout=0.1"])
    mine, ours = (plan_of(Problem(config, read_cluster(f"2x{name}", devices), config)) for name in ("epyc", "cpu"))
    as_gpu = dataclasses.replace(devices["cpu"], is_cpu=False)
    other = plan_of(Problem(config, Cluster(1, 2, "cpu", as_gpu), config))
    assert mine.activations == ours.activations != other.activations


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"--hardware .*nothing.yaml: No such file"):
        read_devices(tmp_path / "nothing.yaml")
