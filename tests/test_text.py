"""No part of a password, a signature or a token in an address is shown, whatever characters it has."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from job.errors import JobError
from job.text import has_credentials, redact, redact_text
from tests.forked import PATIENT_DOCTOR, micronet
from tests.servers import SeaweedFS

SHOWN = [
    ("https://host/a.tar.gz", "https://host/a.tar.gz"),
    ("https://host:8080/a/b", "https://host:8080/a/b"),
    ("http://[::1]:80/a", "http://[::1]:80/a"),
    ("https://user:hush@host/a", "https://host/a"),
    ("HTTPS://user:hush@host/a", "HTTPS://host/a"),
    ("ftp://user:hush@host/a", "ftp://host/a"),
    ("https://user:hu@sh@host/a", "https://host/a"),
    ("https://user:hu/sh@host/a", "https://***@host/a"),
    ("https://user:hu#sh@host/a", "https://***"),
    ("https://user:hu?sh@host/a", "https://***"),
    ("https://user:hu;sh@host/a", "https://***"),
    ("https://host/a?signature=hush", "https://host/a"),
    ("https://host/a;token=hush", "https://host/a"),
    ("https://host/a#token=hush", "https://host/a"),
    ("https://host/a?sig=hu@sh", "https://***"),
    ("https:/user:hush@host/a", "https:/host/a"),
    ("https:user:hush@host/a", "https:host/a"),
    ("https://[::1/a?t=hush", "https://[::1/a"),
    ("s3://bucket/runs/a@b#1;2", "s3://bucket/runs/a@b#1;2"),
    ("gs://bucket/runs/a@b#1;2", "gs://bucket/runs/a@b#1;2"),
    ("s3://user:hush@bucket/a", "s3://bucket/a"),
    ("s3://bucket/a?X-Amz-Signature=hush", "s3://bucket/a"),
    ("runs/a@b#1?c", "runs/a@b#1?c"),
    ("file:///data/a@b#1.tar.gz", "file:///data/a@b#1.tar.gz"),
    ("file://user:hush@host/a", "file://host/a"),
    ("demo:", "demo:"),
]


@pytest.mark.parametrize(("address", "shown"), SHOWN)
def test_an_address_is_shown_without_its_secrets(address: str, shown: str) -> None:
    assert redact(address) == shown
    if "://" in address:
        assert redact_text(f"could not read '{address}': refused.") == f"could not read '{shown}': refused."


secrets = st.text("xX9", min_size=4, max_size=8).flatmap(
    lambda part: st.text("@#/?;:&=+!$*%[]", max_size=3).map(lambda marks: f"{part}{marks}{part}")
)


@given(
    secrets,
    st.sampled_from(["http", "HTTPS", "ftp", "gs", "s3", "file"]),
    st.sampled_from(
        ["{s}://user:{p}@host/a", "{s}://{p}@host:80/", "{s}://host/a?t={p}", "{s}://host/a;t={p}"]
    ),
)
@settings(max_examples=500, deadline=None, print_blob=True)
def test_no_part_of_a_secret_is_shown(secret: str, scheme: str, form: str) -> None:
    address = form.format(s=scheme, p=secret)
    if scheme in ("s3", "gs") and "user:" not in form and "?t=" not in form:
        return  # a bucket's key may hold all that
    for text in (redact(address), redact_text(f"at {address} it failed"), str(JobError(address, address))):
        assert not set("xX9") & set(text.replace("HTTPS", "")), text


@pytest.mark.parametrize(
    "text",
    [
        "https://user:hush@host/a",
        "https://user:hu/sh@host/a",
        "https://user:hu#sh@host/a",
        "https://user@host/a",
        "postgres://user:hush@host/db",
        "https://host/a?X-Amz-Signature=1",
        "https://host/a;token=1",
        "https://host/a#access_token=1",
        "--endpoint http://user:hush@host",
    ],
)
def test_credentials_are_found(text: str) -> None:
    assert has_credentials(text)


@pytest.mark.parametrize(
    "text",
    [
        "https://host/a",
        "http://minio:9000",
        "https://host/pkg@1.0/a",
        "https://host/a?download=1",
        f"https://host/a#sha256={'0123456789abcdef' * 4}",
        "s3://bucket/a@b",
        "gs://bucket/a@b",
        "eu-central-1",
        "user:hush",
    ],
)
def test_what_holds_none_is_not_refused(text: str) -> None:
    assert not has_credentials(text)


@pytest.mark.parametrize(
    "address",
    [
        "ftp://user:hush@127.0.0.1:9/a",
        "HTTP://user:hush@127.0.0.1:9/a?t=hush",
        "http://user:hu#hush@127.0.0.1:9/a",
        "http://user:hu@hush@127.0.0.1:9/a",
        "http://user:hush/hush@127.0.0.1:9/a",
        "http://127.0.0.1:9/a;token=hush",
        "http://127.0.0.1:9/a#token=hush",
        "http://127.0.0.1:9/a#sha256=hush",
        "http://[::1/a?t=hush",
        "s3://user:hush@bucket/a",
        "http:/user:hush@127.0.0.1:9/a",
    ],
)
def test_no_command_shows_the_secret_in_an_address_of_data(address: str) -> None:
    done = micronet("doctor", "--device", "cpu", "--data", address)
    assert done.returncode in (2, 65, 74)
    assert "hush" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_an_unclosed_bracket_is_a_wrong_usage() -> None:
    done = micronet("data", "--data", "http://[::1/a")
    assert (done.returncode, done.stdout) == (2, "")
    assert "is not a valid address" in done.stderr


@pytest.mark.parametrize("run", ["S3://user:hush@bucket/a", "gs://user:hush@b/a", "http://[::1/a?t=hush"])
def test_no_command_shows_the_secret_in_an_address_of_a_run(run: str) -> None:
    done = micronet("status", run)
    assert done.returncode == 2
    assert "hush" not in done.stdout + done.stderr


@pytest.mark.parametrize("password", ["hush", "hu#hush", "hu@hush"])
@pytest.mark.parametrize("reachable", [True, False])
def test_the_doctor_does_not_show_the_password_of_an_endpoint(
    seaweedfs: SeaweedFS, s3_uri: str, password: str, reachable: bool
) -> None:
    host = seaweedfs.endpoint if reachable else "http://127.0.0.1:9"
    endpoint = host.replace("http://", f"http://user:{password}@")
    for options in ([], ["--json"]):
        words = ["doctor", "--demo", "--device", "cpu", "--run", s3_uri, *options]
        done = micronet(*words, before=PATIENT_DOCTOR, AWS_ENDPOINT_URL_S3=endpoint)
        assert "hush" not in done.stdout + done.stderr
        assert "store" in done.stdout
