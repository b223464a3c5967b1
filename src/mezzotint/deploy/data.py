"""What `down` keeps unless it is told otherwise: buckets that hold objects, the database's last snapshot, and
the keys that they are encrypted with.

What is kept is taken out of terraform's state, so that its destroy neither fails on it nor removes what
protects it, and is imported again by the next `up`. A destroy of everything else by name would not do: what
is kept depends on the cluster, if only for its name, and would go with it.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mezzotint.deploy.deployment import CLUSTER_TAG, Deployment
from mezzotint.deploy.runner import CallFailed
from mezzotint.deploy.terraform import Owned
from mezzotint.errors import DeployFailed

__all__ = [
    "delete_databases",
    "delete_kept",
    "empty_buckets",
    "holds_objects",
    "kept_resources",
    "listed_versions",
    "prepare_for_destroy",
    "snapshots",
    "still_there",
]

ENCRYPTION = "aws_s3_bucket_server_side_encryption_configuration"
BUCKET = "aws_s3_bucket"
NO_BUCKET = ("NoSuchBucket",)
NO_DATABASE = ("DBInstanceNotFound", "DBInstanceNotFoundFault")
# The fewest that AWS takes.
KEY_DAYS = 7
KEYS = ("aws_kms_key", "aws_kms_alias")


def kept_resources(d: Deployment, owned: Sequence[Owned]) -> dict[str, str]:
    """Of the resources, those that stay: by address, what each is imported by."""
    kept = {name for each in owned for name in _names(each) if each.type == BUCKET and _has_objects(d, each)}
    keys = _keys_of(owned, kept)
    return {each.address: _import_id(each) for each in owned if _belongs_to(each, kept, keys)}


def still_there(d: Deployment, kept: Mapping[str, str]) -> dict[str, str]:
    """Of what was kept, what nobody has deleted since."""
    there = {id: _exists(d, address, id) for address, id in kept.items()}
    return {address: id for address, id in kept.items() if there[id]}


def _exists(d: Deployment, address: str, id: str) -> bool:
    if ".aws_kms_key." in f".{address}":
        found = d.aws("kms", "describe-key", "--key-id", id, missing=("NotFoundException",)) or {}
        return bool(found.get("KeyMetadata", {}).get("KeyState") == "Enabled")
    if ".aws_s3_bucket" in f".{address}":
        return d.aws("s3api", "get-bucket-location", "--bucket", id, missing=NO_BUCKET) is not None
    return True


def _names(bucket: Owned) -> set[str]:
    return {str(bucket.values.get("bucket") or bucket.id), bucket.id}


def _has_objects(d: Deployment, bucket: Owned) -> bool:
    return holds_objects(d, str(bucket.values.get("bucket") or bucket.id))


def _import_id(each: Owned) -> str:
    named = {"aws_kms_key": "key_id", "aws_kms_alias": "name"}.get(each.type, "bucket")
    return str(each.values.get(named) or each.id)


def delete_databases(d: Deployment, owned: Iterable[Owned]) -> None:
    """Those whose last snapshot's name is taken: terraform knows no other, and would fail."""
    there = snapshots(d)
    for each in owned:
        name = each.values.get("final_snapshot_identifier")
        if each.type == "aws_db_instance" and not each.values.get("skip_final_snapshot") and name in there:
            _delete_database(d, str(each.values["identifier"]), f"{name}-{time.strftime('%Y%m%d%H%M%S')}")


def _delete_database(d: Deployment, database: str, snapshot: str) -> None:
    named = ("--db-instance-identifier", database)
    last = ("--final-db-snapshot-identifier", snapshot)
    if d.aws("rds", "delete-db-instance", *named, *last, changes=True, missing=NO_DATABASE) is not None:
        d.say(f"  the database's last snapshot is {snapshot}")
        _wait_for_its_end(d, database)


def _wait_for_its_end(d: Deployment, database: str) -> None:
    def look() -> str:
        status = _database_status(d, database)
        return status and f"{database} is {status}"

    d.wait("the database to go", "database_gone", look)


def _database_status(d: Deployment, database: str) -> str:
    """Empty where there is none."""
    named = ("--db-instance-identifier", database)
    found = d.aws("rds", "describe-db-instances", *named, missing=NO_DATABASE)
    return "" if found is None else str(found["DBInstances"][0]["DBInstanceStatus"])


def empty_buckets(d: Deployment, owned: Iterable[Owned]) -> None:
    """Delete every object of the deployment's buckets, and every version of it."""
    for bucket in _buckets(owned):
        _empty(d, bucket)


def _empty(d: Deployment, bucket: str) -> None:
    if d.dry_run:
        d.say(f"  would delete all of s3://{bucket}")
        return
    deleted = 0
    while versions := listed_versions(d, bucket):
        _delete(d, bucket, versions)
        deleted += len(versions)
    d.say(f"  deleted {deleted} objects and versions of s3://{bucket}")


def prepare_for_destroy(d: Deployment, owned: Iterable[Owned]) -> None:
    """Take back the protection against deletion, which is there for every other case. Delete what terraform
    would not, or not for a week: images are built again, and a token without its store opens nothing.
    """
    for each in owned:
        if each.type == "aws_ecr_repository":
            name = ("--repository-name", str(each.values.get("name")), "--force")
            d.aws("ecr", "delete-repository", *name, changes=True, missing=("RepositoryNotFoundException",))
        if each.type == "aws_secretsmanager_secret":
            # Its name would be taken until then, and the next `up` could not make it.
            secret = ("--secret-id", each.id, "--force-delete-without-recovery")
            missing = ("ResourceNotFoundException",)
            d.aws("secretsmanager", "delete-secret", *secret, changes=True, missing=missing)
        if not each.values.get("deletion_protection"):
            continue
        if each.type == "aws_db_instance":
            database = str(each.values.get("identifier"))
            if _database_status(d, database) == "deleting":
                # A `down` that was broken off has begun it; until its end RDS refuses every change.
                _wait_for_its_end(d, database)
            name = ("--db-instance-identifier", database, "--apply-immediately")
            change = "--no-deletion-protection"
            d.aws("rds", "modify-db-instance", *name, change, changes=True, missing=NO_DATABASE)
        elif each.type == "aws_eks_cluster":
            change = "--no-deletion-protection"
            missing = ("ResourceNotFoundException",)
            d.aws("eks", "update-cluster-config", "--name", d.cluster, change, changes=True, missing=missing)


def snapshots(d: Deployment) -> list[str]:
    """Of this cluster's databases: those that stay until somebody deletes them."""
    found = d.aws("rds", "describe-db-snapshots", "--snapshot-type", "manual").get("DBSnapshots", [])
    return [
        str(each["DBSnapshotIdentifier"])
        for each in found
        if any(tag == {"Key": CLUSTER_TAG, "Value": d.cluster} for tag in each.get("TagList", []))
    ]


def delete_kept(d: Deployment, buckets: Iterable[str], keys: Iterable[str], backups: Iterable[str]) -> None:
    """What an earlier `down` kept, or a destroy leaves: snapshots, buckets of these names, keys of these ids,
    automated backups of these ARNs.
    """
    for arn in backups:
        d.say(f"  deleting {arn}")
        named = ("--db-instance-automated-backups-arn", arn)
        gone = ("DBInstanceAutomatedBackupNotFound", "DBInstanceAutomatedBackupNotFoundFault")
        d.aws("rds", "delete-db-instance-automated-backup", *named, changes=True, missing=gone)
    for bucket in buckets:
        _empty(d, bucket)
        d.say(f"  deleting s3://{bucket}")
        d.aws("s3api", "delete-bucket", "--bucket", bucket, changes=True, missing=NO_BUCKET)
    for key in keys:
        d.say(f"  the key {key} is deleted in {KEY_DAYS} days")
        days = ("--pending-window-in-days", str(KEY_DAYS))
        gone = ("NotFoundException", "KMSInvalidStateException")
        d.aws("kms", "schedule-key-deletion", "--key-id", key, *days, changes=True, missing=gone)
    for name in snapshots(d):
        d.say(f"  deleting the snapshot {name}")
        missing = ("DBSnapshotNotFound", "DBSnapshotNotFoundFault")
        d.aws("rds", "delete-db-snapshot", "--db-snapshot-identifier", name, changes=True, missing=missing)


def _buckets(owned: Iterable[Owned]) -> list[str]:
    return sorted(str(each.values.get("bucket") or each.id) for each in owned if each.type == BUCKET)


def _keys_of(owned: Iterable[Owned], buckets: Iterable[str]) -> set[str]:
    """ARNs of the keys that these buckets, and the databases' snapshots, are encrypted with."""
    keys: set[str] = set()
    chosen = frozenset(buckets)
    for each in owned:
        if each.type == "aws_db_instance" and not each.values.get("skip_final_snapshot"):
            keys.add(str(each.values.get("kms_key_id")))
        elif each.type == ENCRYPTION and str(each.values.get("bucket")) in chosen:
            keys |= set(_named(each.values, "kms_master_key_id"))
    return keys - {"", "None"}


def _named(value: Any, name: str) -> Iterable[str]:
    """Every text of this name, however deep."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key == name and isinstance(inner, str):
                yield inner
            else:
                yield from _named(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from _named(inner, name)


def _belongs_to(each: Owned, buckets: set[str], keys: set[str]) -> bool:
    if each.type.startswith(BUCKET):
        return str(each.values.get("bucket") or each.id) in buckets
    if each.type in KEYS:
        own = {str(each.values.get(name)) for name in ("arn", "key_id", "target_key_arn", "target_key_id")}
        return bool(own & keys)
    return False


def holds_objects(d: Deployment, bucket: str) -> bool:
    """Or versions of objects that were deleted."""
    return bool(listed_versions(d, bucket, at_most=1))


def listed_versions(d: Deployment, bucket: str, at_most: int = 1_000) -> list[dict[str, str]]:
    """Up to so many objects, versions and marks of deletion, of which S3 deletes 1,000 at once."""
    # One page of S3's own: `--max-items` counts versions alone, and reads on through any number of marks.
    page = ("--bucket", bucket, "--no-paginate", "--max-keys", str(at_most))
    found = d.aws("s3api", "list-object-versions", *page, missing=NO_BUCKET) or {}
    listed = [*(found.get("Versions") or []), *(found.get("DeleteMarkers") or [])]
    return [{"Key": each["Key"], "VersionId": each["VersionId"]} for each in listed]


def _delete(d: Deployment, bucket: str, versions: list[dict[str, str]]) -> None:
    """Raises DeployFailed: one of them cannot be deleted, so asking again would never end."""
    with tempfile.TemporaryDirectory(dir=d.folder.path) as folder:
        request = Path(folder) / "delete.json"
        request.write_text(json.dumps({"Objects": versions, "Quiet": True}), encoding="utf-8")
        asked = ("--bucket", bucket, "--delete", f"file://{request}")
        try:
            answer = d.aws("s3api", "delete-objects", *asked, changes=True)
        except CallFailed as error:
            raise DeployFailed(f"s3://{bucket} cannot be emptied: {error.why}; {error.said}") from None
    refused = answer.get("Errors") or []
    if refused:
        raise DeployFailed(
            f"s3://{bucket}: {refused[0].get('Key')} is not deleted: {refused[0].get('Message')}"
        )
