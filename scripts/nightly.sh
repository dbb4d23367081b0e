#!/usr/bin/env bash
# The nightly job: finds the last days' studies on a PACS, retrieves what is not here yet, converts it to NIfTI and sorts
# the volumes by referring physician. Says nothing when all went well, so that cron sends no mail; a night that was
# missed is caught up by the next one, because each asks for several days and skips what is done.
#
#   nightly.sh NODE [OPTION OF find...]        for example: nightly.sh PACS --modality MR
#
# From the environment, with the default:
#   DAYS=3                        how many days to ask for, up to and with yesterday
#   DCMTOOLS_ARCHIVE              the archive (else the one of config.ini)
#   NIFTI=$PWD/nifti              where the volumes go
#   SHARE=$PWD/share              where they are sorted by physician
#   LOGS=$PWD/logs                nightly.log has what was said, nightly.jsonl the last stage's records (with patient data)
#
# Exit code: 0 all done; 3 some items failed and the next run tries them again; 75 the last run still runs; else the code
# of the stage that could not do its work, or 73 when LOGS cannot be written: 69 74 75 76 are worth a retry (see the README).
set -euo pipefail
umask 077

if (($# < 1)); then
    echo "usage: nightly.sh NODE [OPTION OF find...]" >&2
    exit 2
fi
node=$1
shift

days=${DAYS:-3}
nifti=${NIFTI:-nifti}
share=${SHARE:-share}
logs=${LOGS:-logs}
unwritable() {
    echo "nightly.sh: cannot write to $logs; check the path and the permissions" >&2
    exit 73
}
{ mkdir -p "$logs" && : >>"$logs/nightly.lock"; } || unwritable

# In a clone the command is in its .venv.
command -v dcmtools >/dev/null || PATH=$(dirname "$(realpath "$0")")/../.venv/bin:$PATH

# The lock is on the whole job: all stages inherit it, and the kernel takes it back whatever becomes of them.
exec 9>>"$logs/nightly.lock"
if command -v flock >/dev/null && ! flock -n 9; then
    echo "nightly.sh: the last run has not ended; see $logs/nightly.log" >&2
    exit 75
fi

said=$(mktemp "$logs/.dcmtools-nightly-XXXXXX") || unwritable
trap 'rm -f "$said"' EXIT

set +e
{
    dcmtools find --quiet --node "$node" --date="-${days}d..yesterday" "$@" |
        dcmtools move --quiet - |
        dcmtools convert-nifti --quiet - --out "$nifti" |
        dcmtools sort-by-physician --quiet - --out "$share" >>"$logs/nightly.jsonl"
    codes=("${PIPESTATUS[@]}")
} 2>"$said"
set -e

# A stage that fails makes those behind it end with 3 and those before it with 75 (nobody reads them any more), so the
# cause is the last code that is neither 0 nor 3. The pipe's own exit code would be 3 while the PACS is away.
status=0
for code in "${codes[@]}"; do
    if ((code != 0 && (code != 3 || status == 0))); then
        status=$code
    fi
done

{
    printf '%s nightly %s: exit code %s\n' "$(date +%Y-%m-%dT%H:%M:%S%z)" "$node" "$status"
    cat "$said"
} >>"$logs/nightly.log"
if ((status)); then
    cat "$said" >&2
fi
exit "$status"
