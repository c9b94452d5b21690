"""What a pipeline takes from inside DeepSpeed is still there, and still does what `engine/upstream.py` is made for.

A failure here after an update of DeepSpeed says which of its parts moved; `tests/distributed/test_pipeline.py` says
whether the numbers are still right.
"""

from __future__ import annotations

import inspect
from typing import Any

import pytest


@pytest.fixture(scope="module")
def zero() -> Any:
    from deepspeed.runtime.zero import (
        parameter_offload,
        partition_parameters,
        partitioned_param_coordinator,
        stage3,
        stage_1_and_2,
        utils,
    )

    return {module.__name__.rsplit(".", 1)[-1]: module for module in (
        parameter_offload, partition_parameters, partitioned_param_coordinator, stage3, stage_1_and_2, utils,
    )}  # fmt: skip


def test_the_trace_is_compared_by_a_function_of_this_name(zero: Any) -> None:
    """`compare_traces_within` puts its own in the place of it, wherever it was imported."""
    for name in ("utils", "partitioned_param_coordinator", "partition_parameters", "stage3"):
        assert hasattr(zero[name], "assert_ints_same_as_other_ranks"), f"{name} compares traces in another way"


def test_the_trace_is_compared_with_rank_0_of_the_whole_run(zero: Any) -> None:
    """Once it is not, `compare_traces_within` can go."""
    source = inspect.getsource(zero["utils"])
    assert source.count("dist.broadcast(") == 2
    assert source.count("src=0") == 2
    assert "group=" not in source


def test_gradient_norms_are_summed_over_the_model_parallel_group(zero: Any) -> None:
    """And a parameter counts on the first of its ranks alone, unless it is marked."""
    for name in ("stage3", "stage_1_and_2"):
        source = inspect.getsource(zero[name])
        assert "mpu.get_model_parallel_group()" in source, name
        assert "is_model_parallel_parameter(" in source, name
    from deepspeed.runtime.utils import is_model_parallel_parameter

    assert "'model_parallel'" in inspect.getsource(is_model_parallel_parameter).replace('"', "'")


def test_norms_are_summed_over_stages_where_we_sum_them_once(zero: Any) -> None:
    """`sum_norms_once` stands on these names; were norms summed for all groups at once, it could go."""
    for name, collects in (("stage3", "_get_norm_groups"), ("stage_1_and_2", "scaled_global_norm")):
        source = inspect.getsource(zero[name])
        for verb in (collects, "get_grad_norm_direct", "_model_parallel_all_reduce"):
            assert f"def {verb}(self" in source, f"{name} sums gradient norms in another way: {verb} is gone"
        assert "norm_groups.append(norm)" in source, name


def test_the_unit_of_the_last_engine_is_kept_where_we_forget_it() -> None:
    from deepspeed.utils import groups

    assert "mpu" in vars(groups), "the unit of the last engine is kept somewhere else: see forget_unit"


def test_gradients_of_a_step_are_reduced_once_by_a_public_method() -> None:
    from deepspeed import DeepSpeedEngine

    assert callable(DeepSpeedEngine.coalesce_grad_reduction)
    assert callable(DeepSpeedEngine.scale)
