"""Apache Kafka behind TLS, passwords and permissions: what a production cluster looks like.

Beside the plain listener, on which everybody may do everything and tests prepare topics, the node
has one with SASL_SSL. Its certificate is signed by an authority made here; PLAIN and SCRAM-SHA-512
know the same users, whose permissions the node keeps (StandardAuthorizer).
"""

import subprocess
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from brokers import ApacheKafka, free_port
from kafka import KafkaAdminClient
from kafka.admin import (
    ACL,
    ACLOperation,
    ACLPermissionType,
    ResourcePattern,
    ResourceType,
)

PASSWORDS = {"ann": "ann's pass=word", "bob": "bob-Pass-0815"}
"""Ann may do what the README lists, bob what a test gives him."""

_PROPERTIES = """\
listeners=PLAINTEXT://127.0.0.1:{{port}},CONTROLLER://127.0.0.1:{controller_port},SASL_SSL://127.0.0.1:{secure_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{{port}},SASL_SSL://127.0.0.1:{secure_port}
controller.quorum.bootstrap.servers=127.0.0.1:{controller_port}
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SASL_SSL:SASL_SSL
ssl.keystore.type=PEM
ssl.keystore.location={keystore}
sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-512
listener.name.sasl_ssl.plain.sasl.jaas.config=\
org.apache.kafka.common.security.plain.PlainLoginModule required {plain_users};
listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config=\
org.apache.kafka.common.security.scram.ScramLoginModule required;
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS
"""


class Authority:
    """A certificate authority of the test's own, in PEM files.

    Attributes:
        certificate: the file that clients trust.
    """

    def __init__(self, directory: Path, name: str) -> None:
        self._directory, self._name = directory, name
        self.certificate, self._key = directory / f"{name}.pem", directory / f"{name}.key"
        _openssl(
            "req -x509 -newkey rsa:2048 -nodes -days 2 -addext keyUsage=keyCertSign",
            ["-subj", f"/CN={name}", "-keyout", self._key, "-out", self.certificate],
        )

    def keystore(self, host: str) -> Path:
        """A key and a certificate for `host`, an IP address, as one PEM file."""
        key, request, signed, extensions, store = (
            self._directory / f"{self._name}-{host}.{suffix}"
            for suffix in ("key", "csr", "crt", "ext", "keystore.pem")
        )
        _openssl(
            "req -newkey rsa:2048 -nodes",
            ["-subj", f"/CN={host}", "-keyout", key, "-out", request],
        )
        extensions.write_text(f"subjectAltName=IP:{host}\n")
        _openssl(
            "x509 -req -days 2 -CAcreateserial",
            ["-in", request, "-extfile", extensions, "-out", signed],
            ["-CA", self.certificate, "-CAkey", self._key],
        )
        store.write_text(key.read_text() + signed.read_text() + self.certificate.read_text())
        return store


class SecuredKafka(ApacheKafka):
    """A node with a plain listener, `bootstrap`, and one with TLS and passwords, `secure`.

    Attributes:
        secure: the address of the latter.
        authority: who signed its certificate.
        stranger: an authority that did not.
    """

    def __init__(self, home: Path, directory: Path) -> None:
        self.authority = Authority(directory, "authority")
        self.stranger = Authority(directory, "stranger")
        port = free_port()
        self.secure = f"127.0.0.1:{port}"
        users = " ".join(f'user_{user}="{word}"' for user, word in PASSWORDS.items())
        properties = _PROPERTIES.format(
            secure_port=port,
            controller_port=free_port(),
            keystore=self.authority.keystore("127.0.0.1"),
            plain_users=users,
        )
        scram = [
            f"--add-scram=SCRAM-SHA-512=[name={user},password={word}]"
            for user, word in PASSWORDS.items()
        ]
        super().__init__(home, directory, properties, scram)

    def login(self, user: str, mechanism: str = "PLAIN", **others: Any) -> dict[str, Any]:
        """The `[kafka]` settings of a user."""
        return {
            "bootstrap_servers": self.secure,
            "security_protocol": "SASL_SSL",
            "sasl_mechanism": mechanism,
            "sasl_plain_username": user,
            "sasl_plain_password": PASSWORDS[user],
            "ssl_cafile": str(self.authority.certificate),
            **others,
        }

    def permit(self, user: str, permissions: Mapping[tuple[str, str], Iterable[str]]) -> None:
        """Give permissions: (kind of resource, name) -> operations, as the README spells them."""
        acls = [
            ACL(
                f"User:{user}",
                "*",
                ACLOperation[operation.upper()],
                ACLPermissionType.ALLOW,
                ResourcePattern(ResourceType[kind.upper()], name),
            )
            for (kind, name), operations in permissions.items()
            for operation in operations
        ]
        admin = KafkaAdminClient(bootstrap_servers=self.bootstrap)
        try:
            admin.create_acls(acls)
        finally:
            admin.close()


def _openssl(command: str, *files: list[Any]) -> None:
    subprocess.run(["openssl", *command.split(), *chain(*files)], check=True, capture_output=True)  # noqa: S607  (whichever is on the machine)
