"""The parts of the package that are compiled, if there is a compiler; everything else is in pyproject.toml."""

import os
import sysconfig

from setuptools import Extension, setup

KERNELS = {
    "lazysd.stores._crc": "lazysd/stores/_crc.c",
    "lazysd.move._strided": "lazysd/move/_strided.c",
    "lazysd.quant._decode": "lazysd/quant/_decode.c",
    "lazysd.counting._count": "lazysd/counting/_count.c",
}
is_wanted = os.environ.get("LAZYSD_BUILD_KERNEL", "on") != "off"  # off: a wheel of Python alone, for any machine
limited = not sysconfig.get_config_var("Py_GIL_DISABLED")  # one file for all versions of Python from 3.11 on
kernels = [
    Extension(
        name,
        [source],
        depends=["lazysd/move/_turn.h"],
        extra_compile_args=["-O3", "-std=c11", "-Wno-psabi"],  # of vectors as arguments: functions that are inlined
        py_limited_api=limited,
        optional=True,
    )
    for name, source in KERNELS.items()
]

setup(
    ext_modules=kernels if is_wanted else [],
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if is_wanted and limited else {},
)
