#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""
generate: Python code for the wire's .proto files, made at first use

The code goes to $BUILD/python (build/python without BUILD) and is never committed: it follows common/proto. It
is made in a directory of its own and renamed, so two programs that start at once do not see half of it. Debian's
python3-grpcio has no grpc_tools; protoc and grpc_python_plugin (protobuf-compiler-grpc) do the work.
"""
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROTO = ROOT / "common" / "proto"
PLUGIN = "/usr/bin/grpc_python_plugin"
STAMP = ".stamp"


def target():
    return pathlib.Path(os.environ.get("BUILD") or ROOT / "build").resolve() / "python"


def is_fresh(directory, protos):
    try:
        made = (directory / STAMP).stat().st_mtime_ns
    except FileNotFoundError:
        return False
    return all(proto.stat().st_mtime_ns < made for proto in protos)


def generate(directory, protos):
    directory.parent.mkdir(parents=True, exist_ok=True)
    fresh = pathlib.Path(tempfile.mkdtemp(prefix="python-", dir=directory.parent))
    os.chmod(fresh, 0o755)
    subprocess.run(
        ["protoc", f"-I{PROTO}", f"--python_out={fresh}", f"--grpc_python_out={fresh}",
         f"--plugin=protoc-gen-grpc_python={PLUGIN}", *[str(proto.relative_to(PROTO)) for proto in protos]],
        check=True, cwd=PROTO)
    (fresh / STAMP).touch()
    old = pathlib.Path(tempfile.mkdtemp(prefix="python-old-", dir=directory.parent))
    if directory.exists():
        try:
            directory.rename(old / "python")
        except FileNotFoundError:
            pass
    try:
        fresh.rename(directory)
    except OSError:  # another program was quicker; its code is as good
        shutil.rmtree(fresh)
    shutil.rmtree(old)


def ensure():
    """Make the code if it is missing or older than the .proto files -> the directory, which is put on sys.path."""
    directory = target()
    protos = sorted(PROTO.rglob("*.proto"))
    if not is_fresh(directory, protos):
        generate(directory, protos)
    if str(directory) not in sys.path:
        sys.path.insert(0, str(directory))
    return directory


if __name__ == "__main__":
    print(ensure())
