"""TLS settings: what cannot be used is said before any connection is made."""

import ssl
import subprocess
from pathlib import Path

import pytest
from secured import Authority

from stream_forecaster.config import parse
from stream_forecaster.edge.connection import client_settings
from stream_forecaster.edge.tls import tls_context
from stream_forecaster.errors import ConfigError


def context(**ssl_settings: object) -> ssl.SSLContext:
    """The context of such settings."""
    found = tls_context(parse({"kafka": {"security_protocol": "SSL", **ssl_settings}}).kafka)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """An authority with a certificate and a key."""
    return Authority(tmp_path_factory.mktemp("tls"), "authority")


def test_without_tls_there_is_none() -> None:
    """And every client is told so."""
    kafka = parse({}).kafka

    assert tls_context(kafka) is None
    assert client_settings(kafka)["ssl_context"] is None


def test_nobody_is_trusted_unless_known(authority: Authority) -> None:
    """By default those that the machine trusts; with a file only who is in it."""
    ours = context(ssl_cafile=str(authority.certificate))

    assert len(ours.get_ca_certs()) == 1
    assert (ours.verify_mode, ours.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert ours.minimum_version == ssl.TLSVersion.TLSv1_2
    assert not context(ssl_check_hostname=False).check_hostname


def test_a_client_may_have_a_certificate(authority: Authority) -> None:
    """In one file with its key, or in two."""
    both = str(authority.keystore("127.0.0.1"))

    context(ssl_certfile=both)
    context(ssl_certfile=both, ssl_keyfile=both)


def test_ciphers_are_heeded() -> None:
    """The client library knows the setting and does nothing with it."""
    name = "ECDHE-RSA-AES256-GCM-SHA384"

    assert name in [c["name"] for c in context(ssl_ciphers=name).get_ciphers()]
    assert len(context(ssl_ciphers=name).get_ciphers()) < len(context().get_ciphers())


@pytest.mark.parametrize("setting", ["ssl_cafile", "ssl_certfile", "ssl_crlfile"])
@pytest.mark.parametrize("exists", [False, True])
def test_a_file_that_cannot_be_used_names_its_setting(
    tmp_path: Path, setting: str, *, exists: bool
) -> None:
    """It is not there, or holds something else."""
    path = tmp_path / "file.pem"
    if exists:
        path.write_text("nothing of the kind")

    with pytest.raises(ConfigError, match=rf"kafka\.{setting}.*{path}"):
        context(**{setting: str(path)})


def test_unknown_ciphers_name_their_setting() -> None:
    """As OpenSSL has no list of its own to show."""
    with pytest.raises(ConfigError, match=r"kafka\.ssl_ciphers: cannot use ROT13"):
        context(ssl_ciphers="ROT13")


def test_an_encrypted_key_needs_its_password(tmp_path: Path, authority: Authority) -> None:
    """It is never asked for on the terminal, and a wrong one is not repeated."""
    store, locked = authority.keystore("127.0.0.1"), tmp_path / "locked.key"
    subprocess.run(
        ["openssl", "pkey", "-aes256", "-passout", "pass:open5esame", "-in", store, "-out", locked],  # noqa: S607
        check=True,
        capture_output=True,
    )
    files = {"ssl_certfile": str(store), "ssl_keyfile": str(locked)}

    context(**files, ssl_password="open5esame")  # noqa: S106
    for wrong in ({}, {"ssl_password": "wr0ng-Pass"}):
        with pytest.raises(ConfigError, match="ssl_password") as refused:
            context(**files, **wrong)
        assert "wr0ng-Pass" not in str(refused.value)
