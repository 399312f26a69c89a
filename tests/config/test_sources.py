import errno
import os
import socket
from pathlib import Path

import pytest

from gateway.config.faults import ConfigError
from gateway.config.sources import ConfigFiles, Sources, read


@pytest.fixture
def config(tmp_path: Path) -> Path:
    folder = tmp_path / "config"
    folder.mkdir()
    (folder / "models.yaml").write_bytes(b"models")
    (folder / "routing.yaml").write_bytes(b"routing")
    (tmp_path / ".env").write_bytes(b"A=1")
    return folder


def test_a_config_folder_names_its_files() -> None:
    assert ConfigFiles.of(Path("config"), {}) == ConfigFiles(
        Path("config/models.yaml"), Path("config/routing.yaml"), Path(".env")
    )


@pytest.mark.parametrize(("folder", "env"), [(".", "../.env"), ("..", "../../.env"), ("/etc/gw", "/etc/.env")])
def test_the_dot_env_stands_beside_the_folder(folder: str, env: str) -> None:
    assert ConfigFiles.of(Path(folder), {}).env == Path(env)


def test_variables_name_single_files() -> None:
    environ = {"MODELS_CONFIG": "/a/m.yaml", "ROUTING_CONFIG": ""}
    assert ConfigFiles.of(Path("config"), environ, Path("keys")) == ConfigFiles(
        Path("/a/m.yaml"), Path("config/routing.yaml"), Path("keys"), is_env_named=True
    )


def test_all_files_are_read(config: Path) -> None:
    assert read(ConfigFiles.of(config, {})) == Sources(b"models", b"routing", b"A=1", None)


def test_a_file_that_is_not_there_is_nothing(config: Path) -> None:
    for file in (config / "models.yaml", config / "routing.yaml", config.parent / ".env"):
        file.unlink()
    assert read(ConfigFiles.of(config, {})) == Sources(None, None)


def test_a_path_through_a_file_leads_to_nothing(config: Path) -> None:
    assert read(ConfigFiles.of(config / "models.yaml", {})).models is None


def test_a_folder_that_is_named_dot_env_is_no_file_of_variables(config: Path) -> None:
    (config.parent / ".env").unlink()
    (config.parent / ".env").mkdir()
    assert read(ConfigFiles.of(config, {})).env is None


def test_a_folder_that_is_asked_for_as_one_is_a_fault(config: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read(ConfigFiles.of(config, {}, config))
    assert str(caught.value) == f"{config}: cannot be read: is a directory"


def test_files_that_cannot_be_read_are_faults_with_the_reason(config: Path) -> None:
    for name in ("models.yaml", "routing.yaml"):
        (config / name).unlink()
        (config / name).mkdir()
    with pytest.raises(ConfigError) as caught:
        read(ConfigFiles.of(config, {}))
    assert str(caught.value).splitlines() == [
        f"{config}/models.yaml: cannot be read: is a directory",
        f"{config}/routing.yaml: cannot be read: is a directory",
    ]


def test_pipes_and_sockets_are_faults_and_not_read(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (config / "routing.yaml").unlink()
    os.mkfifo(config / "routing.yaml")
    monkeypatch.chdir(config)  # a socket's path is short
    reading, writing = os.pipe()
    os.write(writing, b"A=1")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("bound")
        with pytest.raises(ConfigError) as caught:
            read(ConfigFiles(Path("bound"), config / "routing.yaml", Path(f"/dev/fd/{reading}")))
    assert str(caught.value).splitlines() == [
        "bound: is a socket, expected a file",
        f"{config}/routing.yaml: is a pipe, expected a file",
        f"/dev/fd/{reading}: is a pipe, expected a file",
    ]
    assert os.read(reading, 100) == b"A=1"
    os.close(reading)
    os.close(writing)


def test_a_file_without_end_is_not_read_to_the_end(config: Path) -> None:
    """It filled the memory."""
    (config / "routing.yaml").unlink()
    (config / "routing.yaml").symlink_to("/dev/zero")
    with pytest.raises(ConfigError) as caught:
        read(ConfigFiles.of(config, {}))
    assert str(caught.value) == f"{config}/routing.yaml: is larger than 64 MiB, expected a configuration"


def test_the_null_device_is_an_empty_file(config: Path) -> None:
    assert read(ConfigFiles.of(config, {}, Path(os.devnull))).env == b""


def test_a_reason_without_words_is_the_name_of_the_error(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path, __: str) -> object:
        raise OSError(errno.EIO)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ConfigError, match="cannot be read: oserror"):
        read(ConfigFiles.of(config, {}))


@pytest.mark.parametrize("name", ["deployment.yaml", "deployment.example.yaml", "deployments.yml"])
def test_a_file_of_the_deprecated_format_is_noticed(config: Path, name: str) -> None:
    (config / name).touch()
    assert read(ConfigFiles.of(config, {})).legacy == name


def test_only_another_file_of_the_deprecated_format_is_noticed(config: Path) -> None:
    for name in ("deployment.yaml", "my-deployment.yaml", "deployment.toml", "deployment.yaxml"):
        (config / name).touch()
    environ = {"ROUTING_CONFIG": str(config / "deployment.yaml")}
    assert read(ConfigFiles.of(config, environ)).legacy is None


def test_a_file_that_ends_otherwise_is_noticed_where_there_is_none_that_is_read(config: Path) -> None:
    for name in ("models.yml", "routing.yml", "m.yaml"):
        (config / name).touch()
    assert read(ConfigFiles.of(config, {})).misnamed == frozenset()
    (config / "routing.yaml").unlink()
    assert read(ConfigFiles.of(config, {})).misnamed == {str(config / "routing.yml")}
    environ = {"MODELS_CONFIG": str(config / "m.yml"), "ROUTING_CONFIG": str(config / "r.txt")}
    assert read(ConfigFiles.of(config, environ)).misnamed == {str(config / "m.yaml")}
    (config / "routing.yml").unlink()
    (config / "routing.yml").mkdir()
    assert read(ConfigFiles.of(config, {})).misnamed == frozenset()


def test_the_digest_names_the_content_of_both_files() -> None:
    digest = Sources(b"a", b"b", b"c").digest
    assert len(digest) == 12
    assert int(digest, 16) >= 0
    assert digest == Sources(b"a", b"b", None, "deployment.yaml").digest
    others = {Sources(*both).digest for both in [(b"ab", b""), (b"a", None), (None, b"a"), (b"", b"ab"), (None, None)]}
    assert len(others | {digest}) == 6


def test_a_repr_shows_no_content() -> None:
    assert repr(Sources(b"canary", b"canary", b"canary")) == "Sources(legacy=None)"
