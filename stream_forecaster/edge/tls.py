"""TLS as the settings have it: whom to trust, and who we are.

The client library would read the files too, but at every connection attempt, where a missing file
looks like a broker that is away; and it does not heed `ssl_ciphers`.
"""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager

from stream_forecaster.config import Kafka
from stream_forecaster.errors import ConfigError


def tls_context(kafka: Kafka) -> ssl.SSLContext | None:
    """What connections are wrapped in; None where they are not.

    Raises:
        ConfigError: a file cannot be read or is not what it should be; names the setting.
    """
    if kafka.security_protocol not in ("SSL", "SASL_SSL"):
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = kafka.ssl_check_hostname
    with _explained("ssl_cafile", kafka.ssl_cafile):
        if kafka.ssl_cafile:
            context.load_verify_locations(kafka.ssl_cafile)
        else:
            context.load_default_certs()
    if kafka.ssl_certfile:
        password = kafka.ssl_password.get_secret_value() if kafka.ssl_password else ""
        files = f"{kafka.ssl_certfile} and {kafka.ssl_keyfile or 'the key in it'}"
        with _explained("ssl_certfile, ssl_keyfile or ssl_password", files):
            # Without a password an encrypted key would be asked for on the terminal: "" is wrong.
            context.load_cert_chain(kafka.ssl_certfile, kafka.ssl_keyfile, password)
    if kafka.ssl_crlfile:
        with _explained("ssl_crlfile", kafka.ssl_crlfile):
            context.load_verify_locations(kafka.ssl_crlfile)
            context.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF
    if kafka.ssl_ciphers:
        with _explained("ssl_ciphers", kafka.ssl_ciphers):
            context.set_ciphers(kafka.ssl_ciphers)
    return context


@contextmanager
def _explained(setting: str, value: str | None) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"kafka.{setting}: cannot use {value}: {reason}") from error
