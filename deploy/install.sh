#!/usr/bin/env bash
# From an AWS account to a running service; takes the options of `mezzotint deploy up` (docs/deploy/command.md).
set -euo pipefail
exec mezzotint deploy up --source "$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)" "$@"
