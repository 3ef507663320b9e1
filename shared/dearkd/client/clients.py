"""The two clients: the calls as they are, and the same without an event loop."""

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from dearkd.client.calls import Calls
from dearkd.client.transport import BlockingTransport, LoopTransport, run_now

P = ParamSpec("P")
T = TypeVar("T")


class AsyncClient(Calls):
    """The control API for programs on asyncio's event loop: its calls are coroutines and asynchronous iterators.

    An asynchronous context manager.

    Args:
        url: of the API, such as `http://127.0.0.1:8000`.
        api_key: sent as a bearer token.

    Raises:
        InvalidInput: if `url` is no HTTP URL, no header can bear the key, or the environment sets a proxy or
            certificates that cannot be used.
    """

    def __init__(self, url: str, api_key: str | None = None) -> None:
        super().__init__(LoopTransport(url, api_key))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()


def _call(
    method: Callable[Concatenate[Calls, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate["Client", P], T]:
    @wraps(method)
    def call(self: "Client", /, *arguments: P.args, **named: P.kwargs) -> T:
        return run_now(method(self._calls, *arguments, **named))

    return call


def _items(
    method: Callable[Concatenate[Calls, P], AsyncIterator[T]],
) -> Callable[Concatenate["Client", P], Iterator[T]]:
    @wraps(method)
    def call(self: "Client", /, *arguments: P.args, **named: P.kwargs) -> Iterator[T]:
        items = method(self._calls, *arguments, **named)
        try:
            while (item := run_now(_next_of(items))) is not _END:
                yield item  # type: ignore[misc]  # it is not the end
        finally:
            run_now(items.aclose())  # type: ignore[attr-defined]  # all of them are generators

    return call


_END = object()


async def _next_of(items: AsyncIterator[T]) -> T | object:
    return await anext(items, _END)


class Client:
    """The control API for programs that wait for its answers: each call is that of `AsyncClient`, without `await`.

    A context manager, and safe to share between threads.

    Args:
        url: of the API, such as `http://127.0.0.1:8000`.
        api_key: sent as a bearer token.

    Raises:
        InvalidInput: if `url` is no HTTP URL, no header can bear the key, or the environment sets a proxy or
            certificates that cannot be used.
    """

    def __init__(self, url: str, api_key: str | None = None) -> None:
        self._calls = Calls(BlockingTransport(url, api_key))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        """The API's URL."""
        return self._calls.url

    close = _call(Calls.close)
    is_ready = _call(Calls.is_ready)

    create_teacher = _call(Calls.create_teacher)
    register_teacher = _call(Calls.register_teacher)
    get_teacher = _call(Calls.get_teacher)
    get_registration = _call(Calls.get_registration)
    check_teacher = _call(Calls.check_teacher)
    list_teachers = _items(Calls.list_teachers)
    delete_teacher = _call(Calls.delete_teacher)

    create_dataset = _call(Calls.create_dataset)
    get_dataset = _call(Calls.get_dataset)
    list_datasets = _items(Calls.list_datasets)
    delete_dataset = _call(Calls.delete_dataset)
    download_dataset_file = _call(Calls.download_dataset_file)

    get_model = _call(Calls.get_model)
    list_models = _items(Calls.list_models)
    delete_model = _call(Calls.delete_model)
    download_model_file = _call(Calls.download_model_file)
    predict = _call(Calls.predict)

    create_synthesis_job = _call(Calls.create_synthesis_job)
    plan_synthesis_job = _call(Calls.plan_synthesis_job)
    create_training_run = _call(Calls.create_training_run)
    plan_training_run = _call(Calls.plan_training_run)
    get_job = _call(Calls.get_job)
    list_jobs = _items(Calls.list_jobs)
    cancel_job = _call(Calls.cancel_job)
    pause_job = _call(Calls.pause_job)
    resume_job = _call(Calls.resume_job)
    set_job_priority = _call(Calls.set_job_priority)
    retry_job = _call(Calls.retry_job)
    wait = _call(Calls.wait)
    events = _items(Calls.events)
    list_events = _items(Calls.list_events)
    list_deliveries = _items(Calls.list_deliveries)
    redeliver = _call(Calls.redeliver)
    get_log = _call(Calls.get_log)
    list_metrics = _items(Calls.list_metrics)
    list_checkpoints = _items(Calls.list_checkpoints)
    download_checkpoint_file = _call(Calls.download_checkpoint_file)
    download_preview = _call(Calls.download_preview)
    download_timelapse = _call(Calls.download_timelapse)
    get_live_preview = _call(Calls.get_live_preview)

    create_key = _call(Calls.create_key)
    list_keys = _items(Calls.list_keys)
    get_key = _call(Calls.get_key)
    get_own_key = _call(Calls.get_own_key)
    rotate_key = _call(Calls.rotate_key)
    revoke_key = _call(Calls.revoke_key)
    share = _call(Calls.share)
    list_audit = _items(Calls.list_audit)
