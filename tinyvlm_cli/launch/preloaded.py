"""Prepares the process that workers are forked from, before it imports their modules."""

import ctypes
import gc
import signal
import sys
from concurrent.futures import ThreadPoolExecutor

PR_SET_PDEATHSIG = 1  # linux/prctl.h
if sys.platform == "linux":  # end with the command, whose output would otherwise stay open during the imports
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
gc.disable()  # garbage collection takes a fifth of the time of imports, and finds nothing; see `worker.main`

# transformers imports these for object detection and speculative decoding, which takes a second. Hide them from it.
unused = [name for name in ("scipy", "sklearn") if name not in sys.modules]
sys.modules.update(dict.fromkeys(unused))  # type: ignore[arg-type]
try:
    import torch

    with ThreadPoolExecutor(1) as pool:  # the driver takes some tenths of a second to answer
        has_gpu = pool.submit(torch.cuda.is_available)
        import transformers.generation.candidate_generator
        import transformers.loss.loss_utils
        import transformers.modeling_layers  # noqa: F401
finally:
    for name in unused:
        del sys.modules[name]
if has_gpu.result():
    import torch._inductor.compile_fx

    # Hashes PyTorch's files for the keys of its compiler's cache. In a thread of a worker, it would take a second.
    torch._inductor.codecache.torch_key()
