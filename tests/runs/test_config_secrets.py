import pytest

from sidrec.errors import ConfigError
from sidrec.runs.config_secrets import refuse_secrets, refuse_traversal
from tests.tiny import encoder_settings, generator_settings


@pytest.mark.parametrize(
    "config",
    [
        {"trainer": {"logger": {"init_args": {"api_key": "x"}}}},
        {"model": {"init_args": {"hf_token": "x"}}},
        {"a": {"password": "x"}},
        {"a": [{"client_secret": "x"}]},
        {"a": {"note": "hf_" + "a" * 34}},
        {"a": {"note": "see sk-" + "b" * 30}},
        {"a": {"id": "0123456789abcdef0123456789abcdef01234567"}},
        {"a": ["ghp_" + "c" * 36]},
        {"a": {"url": "https://me:pass@host/x"}},
        {"a": {"note": "AKIAABCDEFGHIJKLMNOP"}},
        {"trainer": {"logger": {"init_args": {"wandb_key": "x"}}}},
        {"a": {"pwd": "x"}},
        {"a": {"db_pwd": "x"}},
        {"a": {"note": "AIza" + "d" * 35}},
        {"a": {"note": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2ln"}},
        {"a": {"header": "Authorization: Bearer abc123def456"}},
        {"a": {"store": "AccountName=me;AccountKey=Zm9v+/==;EndpointSuffix=x"}},
    ],
)
def test_secrets_are_refused_and_not_repeated(config):
    with pytest.raises(ConfigError, match="looks like a secret") as caught:
        refuse_secrets(config)
    for secret in (
        "hf_a",
        "sk-b",
        "ghp_c",
        "0123",
        "pass@",
        "AKIA",
        "AIza",
        "eyJ",
        "abc123",
        "Zm9v",
    ):
        assert secret not in str(caught.value)


@pytest.mark.parametrize(
    "config",
    [
        {"model": {"revision": "0123456789abcdef0123456789abcdef01234567"}},
        {"data": {"max_query_tokens": 16, "token_dropout": "0.1", "tokens": "all"}},
        {"model": {"text_input": "tokens", "api_key": None}},
        {"model": {"api_key": ""}},
        {"data": {"sort_key": "time", "monitor": "val/keyword", "note": "Bearer of good tidings"}},
        {"data": {"corpus": "data/AIza", "note": "eyJ.x"}},
    ],
)
def test_what_only_resembles_a_secret_passes(config):
    refuse_secrets(config)


def test_real_configurations_pass(tmp_path):
    for settings in (encoder_settings(tmp_path, tmp_path), generator_settings()):
        refuse_secrets(settings)
        refuse_traversal(settings)


@pytest.mark.parametrize("name", ["../../etc", "/etc/cron.d/x", "a/../../b", "a\0b"])
def test_names_do_not_leave_their_folder(name):
    config = {"trainer": {"logger": {"init_args": {"name": name}}}}
    with pytest.raises(ConfigError, match=r"trainer\.logger\.init_args\.name is '.*is outside"):
        refuse_traversal(config)
    refuse_traversal({"data": {"corpus": name}})  # a path that a person gives, not a name
