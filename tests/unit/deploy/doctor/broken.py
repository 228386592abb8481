"""Checks that go wrong in the ways in which libraries do."""

import os
import signal
import time

from deploy.doctor.findings import Finding


def dies() -> Finding:
    os.kill(os.getpid(), signal.SIGSEGV)
    raise AssertionError("still alive")


def hangs() -> Finding:
    time.sleep(600)
    return Finding("ok", "at last")


def exits() -> Finding:
    print("no such device", flush=True)
    os._exit(3)


def lacks_a_package() -> Finding:
    import a_package_that_nobody_has  # noqa: F401

    return Finding("ok", "")


def raises() -> Finding:
    raise OSError("libc10_cuda.so: cannot\nopen shared object file")


def talks() -> Finding:
    print("welcome to the library")
    return Finding("ok", "fine")
