"""A GPU through NVIDIA's driver alone: memory, events and a name, without torch or a toolkit."""

import ctypes
import ctypes.util

import numpy as np

MULTIPROCESSORS, CLOCK_OF_MEMORY, WIDTH_OF_MEMORY = 16, 36, 37
_LARGEST_NAME = 128


class NoGpu(Exception):
    """Why there is no GPU to use, as a sentence."""


class Gpu:
    """The first GPU, its primary context current on this thread; the `memory` of kernels."""

    def __init__(self) -> None:
        name = ctypes.util.find_library("cuda") or "libcuda.so.1"
        try:
            self._cuda = ctypes.CDLL(name)
        except OSError as error:
            raise NoGpu(f"there is no NVIDIA driver here ({error}), so nothing can run.") from error
        count = ctypes.c_int()
        if self._cuda.cuInit(0) != 0 or self._cuda.cuDeviceGetCount(ctypes.byref(count)) != 0:
            raise NoGpu(
                "NVIDIA's driver is here and does not start: is a GPU given to this machine?"
            )
        if count.value == 0:
            raise NoGpu("NVIDIA's driver is here and finds no GPU.")
        self._device, context = ctypes.c_int(), ctypes.c_void_p()
        self._call("cuDeviceGet", ctypes.byref(self._device), 0)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self._device)
        self._call("cuCtxSetCurrent", context)

    @property
    def name(self) -> str:
        """As the driver calls it."""
        text = ctypes.create_string_buffer(_LARGEST_NAME)
        self._call("cuDeviceGetName", text, _LARGEST_NAME, self._device)
        return text.value.decode()

    def attribute(self, number: int) -> int:
        """A CU_DEVICE_ATTRIBUTE."""
        value = ctypes.c_int()
        self._call("cuDeviceGetAttribute", ctypes.byref(value), number, self._device)
        return value.value

    @property
    def bandwidth(self) -> float:
        """Bytes a second that the memory's clock and width allow: two words a clock."""
        clock = self.attribute(CLOCK_OF_MEMORY) * 1e3
        return 2 * clock * self.attribute(WIDTH_OF_MEMORY) / 8

    def put(self, array) -> int:
        """The address of a copy on the GPU."""
        array = np.ascontiguousarray(array)
        place = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(place), ctypes.c_size_t(array.nbytes))
        source = ctypes.c_void_p(array.ctypes.data)
        self._call("cuMemcpyHtoD_v2", place, source, ctypes.c_size_t(array.nbytes))
        return place.value

    def get(self, address: int, shape, dtype):
        """A copy of what lies there, when all that was started is done."""
        array = np.empty(shape, dtype)
        self._call("cuCtxSynchronize")
        target = ctypes.c_void_p(array.ctypes.data)
        place = ctypes.c_uint64(address)
        self._call("cuMemcpyDtoH_v2", target, place, ctypes.c_size_t(array.nbytes))
        return array

    def free(self, address: int) -> None:
        """Give it back."""
        self._call("cuMemFree_v2", ctypes.c_uint64(address))

    def seconds(self, work, calls: int) -> float:
        """Of one of ``calls`` calls of ``work``, which starts kernels on the default stream."""
        events = [ctypes.c_void_p(), ctypes.c_void_p()]
        for event in events:
            self._call("cuEventCreate", ctypes.byref(event), 0)
        self._call("cuEventRecord", events[0], None)
        for _ in range(calls):
            work()
        self._call("cuEventRecord", events[1], None)
        self._call("cuEventSynchronize", events[1])
        milliseconds = ctypes.c_float()
        self._call("cuEventElapsedTime", ctypes.byref(milliseconds), *events)
        for event in events:
            self._call("cuEventDestroy_v2", event)
        return milliseconds.value * 1e-3 / calls

    def _call(self, name: str, *arguments) -> None:
        code = getattr(self._cuda, name)(*arguments)
        if code != 0:
            text = ctypes.c_char_p()
            self._cuda.cuGetErrorString(code, ctypes.byref(text))
            raise RuntimeError(f"{name}: {(text.value or b'').decode() or code}")
