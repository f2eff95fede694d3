# SPDX-License-Identifier: Apache-2.0
"""
certificates: a CA and what it signs, by openssl(1)
"""
import subprocess

NEW_KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]


class Pair:
    def __init__(self, directory, name):
        self.certificate = str(directory / f"{name}.pem")
        self.key = str(directory / f"{name}.key")


def run(*arguments):
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


class Authority(Pair):
    def __init__(self, directory, name="ca"):
        super().__init__(directory, name)
        self.directory = directory
        run("req", "-x509", *NEW_KEY, "-days", "2", "-subj", f"/CN={name}", "-keyout", self.key, "-out", self.certificate)

    def issue(self, name, names="IP:127.0.0.1,DNS:localhost"):
        """A certificate for that common name and those subject alternative names."""
        pair = Pair(self.directory, name)
        request = str(self.directory / f"{name}.csr")
        run("req", "-new", *NEW_KEY, "-subj", f"/CN={name}", "-addext", f"subjectAltName={names}", "-keyout", pair.key, "-out",
            request)
        run("x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", self.key, "-CAcreateserial", "-days", "2",
            "-copy_extensions", "copy", "-out", pair.certificate)
        return pair
