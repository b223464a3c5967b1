#!/usr/bin/env bash
# Back to nothing; takes the options of `mezzotint deploy down` (docs/deploy/command.md).
set -euo pipefail
exec mezzotint deploy down --source "$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)" "$@"
