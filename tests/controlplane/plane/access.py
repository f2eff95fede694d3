# SPDX-License-Identifier: Apache-2.0
"""
access: who may speak as whom: tokens and certificates

A tokens file has lines `TOKEN CLUSTER NODE [NAME]`: CLUSTER `*` is every cluster, NODE `*` a caller of JobService, anything
else the one node whose agent holds the token. `cn:NAME CLUSTER NODE` binds the common name of a certificate instead; a
name that is not listed is the node of that name. The file is read again when it changes, so tokens can be rotated.
A caller's token opens no agent's service, and an agent's no caller's: what leaks from a node cancels nobody's job.
"""
import dataclasses
import os
import threading

import grpc

from .rules import Refusal


@dataclasses.dataclass(frozen=True)
class Identity:
    cluster: str
    node: str
    name: str


ANYONE = Identity("*", "", "anonymous")  # no tokens file, no certificate: everything is allowed


def parse(text, path):
    identities = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) not in (3, 4):
            raise ValueError(f"{path}:{number}: TOKEN CLUSTER NODE [NAME] is wanted")
        name = words[3] if len(words) == 4 else ("caller" if words[2] == "*" else words[2])
        identities[words[0]] = Identity(words[1], words[2], name)
    return identities


class Access:
    def __init__(self, tokens_path, with_certificates):
        self._path = tokens_path
        self._with_certificates = with_certificates
        self._lock = threading.Lock()
        self._stamp = None
        self._identities = {}
        if tokens_path:
            self._read()

    def _read(self):
        with self._lock:
            status = os.stat(self._path)
            stamp = (status.st_mtime_ns, status.st_ino, status.st_size)
            if stamp != self._stamp:
                with open(self._path, encoding="utf-8") as file:
                    self._identities = parse(file.read(), self._path)
                self._stamp = stamp
            return self._identities

    def identify(self, context):
        """The Identity behind a call; Refusal UNAUTHENTICATED."""
        identities = self._read() if self._path else {}
        name = self._common_name(context)
        if name and "cn:" + name in identities:
            return identities["cn:" + name]
        if not any(not key.startswith("cn:") for key in identities):
            if name:
                return Identity("*", name, name)
            if self._path:
                raise Refusal(grpc.StatusCode.UNAUTHENTICATED, "no certificate that this control plane knows")
            return ANYONE
        header = dict(context.invocation_metadata()).get("authorization", "")
        scheme, _, token = header.partition(" ")
        if scheme != "Bearer" or token not in identities or token.startswith("cn:"):
            raise Refusal(grpc.StatusCode.UNAUTHENTICATED, "no token" if not header else "the token is not known")
        found = identities[token]
        if name and found.node != "*" and name != found.node:
            raise Refusal(grpc.StatusCode.PERMISSION_DENIED, f"the token is node {found.node!r}'s, the certificate {name!r}'s")
        return found

    def exchange(self, token):
        """Is it a caller's token? Refusal UNAUTHENTICATED. Without a tokens file every one is good, as in each call."""
        found = self._read().get(token) if self._path else ANYONE
        if not token or token.startswith("cn:") or found is None or (found is not ANYONE and found.node != "*"):
            raise Refusal(grpc.StatusCode.UNAUTHENTICATED, "the token is not known")

    def _common_name(self, context):
        if not self._with_certificates:
            return ""
        names = context.auth_context().get("x509_common_name", [b""])
        return names[0].decode("utf-8", "replace")

    def agent(self, context, cluster_id, node):
        """May this peer speak as that node's agent?"""
        found = self.identify(context)
        if found is ANYONE:
            return found
        if found.cluster not in ("*", cluster_id) or found.node != node:
            raise Refusal(grpc.StatusCode.PERMISSION_DENIED,
                          f"{found.name!r} is not the agent of node {node!r} in cluster {cluster_id!r}")
        return found

    def caller(self, context, cluster_id=None):
        """May this peer call JobService for that cluster? A certificate alone is a caller's, too, if it has no token."""
        found = self.identify(context)
        if found is ANYONE:
            return found
        if found.node != "*" and self._path:
            raise Refusal(grpc.StatusCode.PERMISSION_DENIED, f"{found.name!r} is an agent, not a caller")
        if cluster_id is not None and found.cluster not in ("*", cluster_id):
            raise Refusal(grpc.StatusCode.PERMISSION_DENIED, f"{found.name!r} has no rights in cluster {cluster_id!r}")
        return found
