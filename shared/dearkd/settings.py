"""Settings from the environment (`DEARKD_…`); docs/settings.md lists the same names."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError
from pydantic_settings import BaseSettings, SettingsConfigDict

from dearkd.addresses import (
    StorageAddress,
    check_api_url,
    check_endpoint,
    check_ray_address,
    check_redis_url,
    expand_folder,
)
from dearkd.redaction import without_credentials
from dearkd.secret_files import read_secret

SECRETS: Final = ("api_key", "redis_url", "api_keys", "admin_keys")
"""Settings that a file may hold: see `dearkd.secret_files`."""


class Settings(BaseSettings):
    """Settings of a dearkd process. Times are in seconds, sizes in bytes."""

    model_config = SettingsConfigDict(env_prefix="DEARKD_", extra="ignore", frozen=True)

    url: str = "http://127.0.0.1:8000"
    """The API's address, for the client."""
    api_key: str | None = None
    """The client's key."""
    api_key_file: Path | None = None
    """A file that holds `api_key`; so the other `…_file` hold the setting of their name."""

    redis_url: str = "redis://127.0.0.1:6379/0"
    redis_url_file: Path | None = None
    storage_url: str = "file://./dearkd-data/storage"
    """`file:///absolute/path`, `file://./relative/path` or `s3://bucket/prefix`."""
    s3_endpoint: str | None = None
    """The address of an S3 server other than AWS: `http://host:port` or `https://host:port`."""
    s3_region: str | None = None
    """Default: AWS_REGION or AWS_DEFAULT_REGION, else us-east-1."""
    s3_addressing: Literal["path", "virtual"] | None = None
    """The place of the bucket: in the path, or in the host's name. Default: the host's name at AWS, unless the bucket's
    has dots; the path elsewhere."""

    api_keys: str = Field(default="", repr=False)
    """The keys that the API asks for, by commas; `sha256:HEX` stands for the key of that hash. Empty: for none."""
    admin_keys: str = Field(default="", repr=False)
    """Further keys, in the same form, which may also delete what belongs to other keys, or to none."""
    api_keys_file: Path | None = None
    admin_keys_file: Path | None = None
    allowed_hosts: str = ""
    """Hosts besides loopback's names and `host` under which the API may be called, by commas; `*.example.com` stands
    for all names below, `*` for every host."""
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)

    cache_dir: Path = Path("./dearkd-data/cache")
    """Verified local copies of shards and weights."""
    cache_bytes: int = Field(default=20 * 2**30, ge=2**20)

    max_upload_bytes: int = Field(default=4 * 2**30, ge=1)
    max_body_bytes: int = Field(default=2**20, ge=1024)
    max_connections: int = Field(default=512, ge=1)
    """The most open connections of the API. A further one replaces the one that has waited longest for its client."""
    header_seconds: float = Field(default=15.0, gt=0)
    """The most seconds that a connection may take to send a request's headers."""
    body_seconds: float = Field(default=30.0, gt=0)
    """The most seconds that a JSON body may take to arrive."""
    send_seconds: float = Field(default=60.0, gt=0)
    """Seconds in which a client must take 64 KiB of an answer, or all that is left; else the connection is closed."""
    min_upload_rate: int = Field(default=16384, ge=0)
    """The lowest rate of an upload in bytes per second, averaged over each `upload_rate_seconds`."""
    upload_rate_seconds: float = Field(default=20.0, gt=0)
    upload_wait_seconds: float = Field(default=10.0, gt=0)
    """Seconds that an upload waits for one of the eight upload slots before it is answered 503."""
    max_key_failures: int = Field(default=30, ge=1)
    """Wrong API keys from one address in a minute, after which others from there are answered 429."""
    max_images: int = Field(default=10_000_000, ge=1)
    max_image_size: int = Field(default=1024, ge=8)
    max_iterations: int = Field(default=100_000, ge=1)
    max_shards: int = Field(default=100_000, ge=1)
    """The most shards that one job may have; each is a unit in Redis and an entry of the manifest."""

    max_queued_jobs: int = Field(default=1000, ge=1)
    """The most jobs and runs that may be queued or blocked at once; counted for each API key if there are keys."""

    lease_seconds: float = Field(default=15.0, gt=0)
    heartbeat_seconds: float = Field(default=3.0, gt=0)
    drain_seconds: float = Field(default=900.0, gt=0)
    """Seconds after which a drain task takes no further unit and gives its worker back to the queue."""
    inspect_seconds: float = Field(default=60.0, gt=0)
    """Seconds that a request waits for the inspector before it is answered 202."""
    inspect_timeout_seconds: float = Field(default=600.0, ge=1)
    """The most seconds that inspecting a teacher, or one shard of a dataset, may take; then it is refused."""
    inspect_memory_bytes: int = Field(default=4 * 2**30, ge=400 * 2**20)
    """Memory that an inspection may take, beside three times the size of what was uploaded (on Linux). torch
    itself takes 350 MiB."""
    preview_seconds: float = Field(default=2.0, ge=0)
    """Seconds between two live pictures of what a synthesis worker is optimising; 0: none."""
    stall_seconds: float = Field(default=7200.0, gt=0)
    """Seconds without a step, beside the time that a step of its size may take, after which a unit is ended as hung."""
    max_deaths: int = Field(default=3, ge=1)
    """Deaths in a row without progress after which a job fails."""
    retention: float = Field(default=7 * 86400.0, ge=0)
    """Seconds for which `dearkd gc` keeps what a failed or canceled job made, so that it can be retried."""
    memory_bytes: int | None = Field(default=None, ge=1)
    """The memory that workers here say they have, for jobs with `resources`. Default: that of the GPU, or of the
    machine or container; several workers that share it may say less."""
    torch_threads: int | None = Field(default=None, ge=1)
    """CPU threads of a job; recorded with its results. Default: torch's own choice."""
    ray_address: str | None = None
    """The head of the Ray cluster (`host:port`, as for `ray start --address`) on which runs with `engine: ray` are
    trained; for the API and its trainers, whose machines are nodes of it. Default: there is none."""
    metrics_sinks: str | None = None
    """Trackers that training runs send their metrics to, besides the API: any of `tensorboard,mlflow,wandb,trackio`,
    separated by commas; empty: none. Default: TensorBoard if its package is installed."""
    metrics_dir: Path = Path("./dearkd-data/metrics")
    """The folder for metrics sinks that write files."""
    webhook_private_targets: bool = False
    """Webhooks may be sent to addresses that are not of the public internet: this machine's, its network's."""
    log_level: str = "INFO"
    log_format: Literal["text", "json"] = "text"
    """`json`: each line of the log of API and workers is a JSON object."""

    @model_validator(mode="before")
    @classmethod
    def _read_secrets(cls, given: dict[str, Any]) -> dict[str, Any]:
        """Take secrets from their files; what is wrong with one is an error of the variable that names it."""
        found = dict(given)
        wrong: list[InitErrorDetails] = []
        for name in SECRETS:
            path = given.get(f"{name}_file")
            if path is None:
                continue
            try:
                if given.get(name):
                    raise ValueError(f"DEARKD_{name.upper()} is set too: unset one of them")
                found[name] = read_secret(Path(path))
            except ValueError as error:
                broken = PydanticCustomError("secret_file", "{why}", {"why": str(error)})
                wrong.append(InitErrorDetails(type=broken, loc=(f"{name}_file",), input=str(path)))
        if wrong:
            raise ValidationError.from_exception_data(cls.__name__, wrong)
        return found

    @field_validator("url")
    @classmethod
    def _check_url(cls, value: str) -> str:
        return check_api_url(value)

    @field_validator("redis_url")
    @classmethod
    def _check_redis_url(cls, value: str) -> str:
        # Empty is "not given", as for `dearkd up`, which then starts its own.
        return check_redis_url(value or str(cls.model_fields["redis_url"].default))

    @field_validator("storage_url")
    @classmethod
    def _check_storage_url(cls, value: str) -> str:
        value = value or str(cls.model_fields["storage_url"].default)
        StorageAddress.parse(value)
        return value

    @field_validator("s3_endpoint")
    @classmethod
    def _check_endpoint(cls, value: str | None) -> str | None:
        return None if value is None else check_endpoint(value)

    @field_validator("ray_address")
    @classmethod
    def _check_ray_address(cls, value: str | None) -> str | None:
        return check_ray_address(value) if value else None

    @field_validator("cache_dir", "metrics_dir")
    @classmethod
    def _expand(cls, value: Path) -> Path:
        return expand_folder(value)

    @property
    def metrics_sink_names(self) -> list[str]:
        if self.metrics_sinks is None:
            return ["tensorboard"] if find_spec("tensorboard") else []
        return [name.strip() for name in self.metrics_sinks.split(",") if name.strip()]


def broken_settings(error: ValidationError) -> list[str]:
    """List the invalid settings of the environment, one line each; passwords in URLs are left out."""
    return [
        f"DEARKD_{str(e['loc'][0]).upper()} is {without_credentials(repr(e['input']))}: "
        + e["msg"].removeprefix("Value error, ")
        for e in error.errors()
        if e["loc"]
    ]
