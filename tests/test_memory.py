"""Memory that runs out is told from other errors, given back and said in one sentence."""

import weakref

import numpy as np
import pytest
import torch

from softgate import memory
from softgate.errors import OutOfMemory, SoftgateError


def real(what) -> BaseException:
    with pytest.raises((RuntimeError, MemoryError)) as error:
        what()
    return error.value


def test_what_pytorch_and_numpy_raise_is_known_and_the_size_is_told():
    cpu = real(lambda: torch.empty(1 << 50, dtype=torch.uint8))
    assert memory.ran_out(cpu)
    assert memory.shortage(cpu) == "memory ran out at 1073741824.0 MiB more"
    array = real(lambda: np.ones(1 << 50, dtype=np.uint8))
    assert memory.ran_out(array)
    assert memory.shortage(array) == "memory ran out at 1.00 PiB more"
    gpu = torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79 GiB"
    )
    assert memory.shortage(gpu) == "memory ran out at 20.00 MiB more"


@pytest.mark.parametrize(
    ("error", "known"),
    [
        (MemoryError(), True),
        (OSError(12, "Cannot allocate memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("Caught MemoryError in DataLoader worker process 0.\nOriginal Traceback"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (SoftgateError("data.root=x: there is no such folder."), False),
    ],
)
def test_other_errors_are_not_taken_for_it(error, known):
    assert memory.ran_out(error) == known
    assert (memory.sentence(error, "it lower") is not None) == known


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("DataLoader worker (pid 4711) is killed by signal: Killed. ", "was killed, as the system does"),
        ("DataLoader worker (pid 4711) is killed by signal: Segmentation fault. ", "ended by a segmentation fault"),
        ("DataLoader worker (pid(s) 4711, 4712) exited unexpectedly", "ended by itself"),
        ("DataLoader worker (pid 4711) is killed by signal: Bus error. It is", "no room in shared memory"),
        ("Caught RuntimeError in DataLoader worker process 0.\nRuntimeError: unable to write to file </torch_11_2_0>: "
         "No space left on device (28)", "no room in shared memory"),
    ],
)  # fmt: skip
def test_a_process_that_loads_images_and_is_ended_is_one_sentence(error, said):
    sentence = memory.sentence(RuntimeError(error), "it lower")
    assert said in sentence
    assert "data.num_workers" in sentence
    assert "shared memory (/dev/shm)" in sentence


@pytest.mark.parametrize("fits", [1, 3, 8, 100])
def test_chunks_are_halved_until_they_fit_and_cover_every_item_once(fits):
    seen = []

    def work(part: slice) -> int:
        taken = list(range(20))[part]
        if len(taken) > fits:
            raise MemoryError
        seen.extend(taken)
        return len(taken)

    assert sum(memory.in_chunks(work, 20, 16)) == 20
    assert seen == list(range(20))


def test_what_does_not_fit_one_by_one_raises():
    def work(part: slice) -> int:
        raise MemoryError

    with pytest.raises(MemoryError):
        memory.in_chunks(work, 4, 4)


def test_what_an_error_held_is_free_when_it_is_passed_over():
    held, said, alive = [], [], []

    def fails() -> None:
        tensor = torch.zeros(9)
        held.append(weakref.ref(tensor))
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    def tell(why: str) -> None:
        alive.append(held[0]() is not None)
        said.append(why)

    with memory.spared(tell):
        fails()
    assert alive == [False]
    assert said == ["memory ran out at 2.00 GiB more"]
    with pytest.raises(ZeroDivisionError), memory.spared(tell):
        1 / 0  # noqa: B018  (the error is what is wanted)


def test_a_command_ends_with_one_sentence_that_says_what_is_kept():
    with (
        pytest.raises(OutOfMemory, match=r"^memory ran out; set data\.batch_size lower\. last\.ckpt is kept\.$") as end,
        memory.phrased("data.batch_size lower", lambda: "last.ckpt is kept."),
    ):
        raise MemoryError
    assert end.value.status == 5
    with pytest.raises(RuntimeError, match=r"^a bug$"), memory.phrased("data.batch_size lower"):
        raise RuntimeError("a bug")
