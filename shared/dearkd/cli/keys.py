"""`dearkd key create|list|show|rotate|revoke`, `dearkd share`, `dearkd unshare` and `dearkd audit`."""

from typing import Annotated, Any

import typer

from dearkd.choices import KeyScope
from dearkd.cli.output import AsJson, Limit, connect, json_of, note, print_item, print_json, print_list

COLUMNS = {
    "ID": "id",
    "NAME": "name",
    "SCOPES": "scopes",
    "EXPIRES": "expires_at",
    "REVOKED": "revoked_at",
    "CREATED": "created_at",
}
AUDIT_COLUMNS = {
    "AT": "at",
    "KEY": "key_name",
    "ADDRESS": "address",
    "METHOD": "method",
    "PATH": "path",
    "STATUS": "status",
    "RESOURCE": "resource",
}

Identifier = Annotated[str, typer.Argument(metavar="KEY", help="Its id (key-…) or its name.")]
Quota = Annotated[int | None, typer.Option(min=0, help="Default: no limit.")]
Shareable = Annotated[str, typer.Argument(metavar="ID", help="Of a teacher, dataset or model, or its name.")]


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="API keys, for administrators.")
    app.add_typer(group, name="key")
    group.command("create")(create)
    group.command("list")(list_all)
    group.command("show")(show)
    group.command("rotate")(rotate)
    group.command("revoke")(revoke)
    app.command("share")(share)
    app.command("unshare")(unshare)
    app.command("audit")(audit)


def create(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    scope: Annotated[
        list[KeyScope] | None, typer.Option("--scope", help="May be given several times. Default: submit.")
    ] = None,
    expires_in_days: Annotated[float | None, typer.Option(min=0, help="Default: never.")] = None,
    requests_per_minute: Quota = None,
    queued_jobs: Quota = None,
    images_per_day: Quota = None,
    bytes_per_day: Quota = None,
    as_json: AsJson = False,
) -> None:
    """Create a key and print its secret, this once. The first one needs --scope admin, and closes the API."""
    from datetime import UTC, datetime, timedelta

    from dearkd.specs.requests import Quotas

    quotas = {
        "requests_per_minute": requests_per_minute,
        "queued_jobs": queued_jobs,
        "images_per_day": images_per_day,
        "bytes_per_day": bytes_per_day,
    }
    expires_at = None if expires_in_days is None else datetime.now(UTC) + timedelta(days=expires_in_days)
    with connect() as client:
        created = client.create_key(
            name,
            scopes=[one.value for one in scope or [KeyScope.submit]],
            expires_at=expires_at,
            quotas=Quotas.check(quotas),
        )
    _print_secret(created, as_json=as_json)


def list_all(limit: Limit = 50, as_json: AsJson = False) -> None:
    """List keys, newest first, revoked ones too."""
    with connect() as client:
        found = map(json_of, client.list_keys())
        shown = found if as_json else ({**one, "scopes": ", ".join(one["scopes"])} for one in found)
        print_list(iter(shown), COLUMNS, limit=limit, as_json=as_json)


def show(
    key: Annotated[
        str | None, typer.Argument(metavar="[KEY]", help="Its id or name. Default: the one that this command sends.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show a key; without one, your own and what it has used today."""
    from dearkd.cli.references import identifier_of

    with connect() as client:
        if key is None:
            print_item(client.get_own_key(), as_json=as_json)
        else:
            print_item(client.get_key(identifier_of(client, key, "key")), as_json=as_json)


def rotate(
    key: Identifier,
    grace_seconds: Annotated[float, typer.Option(min=0, help="For so long the old secret is taken as well.")] = 0.0,
    as_json: AsJson = False,
) -> None:
    """Give a key a new secret and print it; what the key owns stays its own."""
    from dearkd.cli.references import identifier_of

    with connect() as client:
        created = client.rotate_key(identifier_of(client, key, "key"), grace_seconds=grace_seconds)
    _print_secret(created, as_json=as_json)


def revoke(key: Identifier, as_json: AsJson = False) -> None:
    """End a key."""
    from dearkd.cli.references import identifier_of

    with connect() as client:
        print_item(client.revoke_key(identifier_of(client, key, "key")), as_json=as_json)


def share(reference: Shareable, as_json: AsJson = False) -> None:
    """Let every key see and use a teacher, dataset or model of yours."""
    _share(reference, shared=True, as_json=as_json)


def unshare(reference: Shareable, as_json: AsJson = False) -> None:
    """Let no other key see a teacher, dataset or model of yours any more."""
    _share(reference, shared=False, as_json=as_json)


def _share(reference: str, *, shared: bool, as_json: bool) -> None:
    from dearkd.cli.references import identifier_of

    with connect() as client:
        identifier = identifier_of(client, reference, "teacher", "dataset", "model")
        found = client.share(identifier, shared=shared)
    if as_json:
        print_json(json_of(found))
    else:
        note(f"{identifier} is {'shared with every key' if shared else 'seen by its owner alone'}")


def audit(limit: Limit = 50, as_json: AsJson = False) -> None:
    """List the changes that clients made, newest first: who, what, when, from where."""
    with connect() as client:
        print_list(map(json_of, client.list_audit()), AUDIT_COLUMNS, limit=limit, as_json=as_json)


def _print_secret(created: Any, *, as_json: bool) -> None:
    if as_json:
        print_json(json_of(created))
        return
    print(created.key)
    note(f"{created.id} ({created.name}), {', '.join(created.scopes)}: this is shown once; DEARKD_API_KEY sends it")
