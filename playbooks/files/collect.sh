#!/bin/sh
# collect.sh ARCHIVE SINCE: packs what this node has to say. Configuration is left out: it may name keys.
set -eu
archive=$1 since=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/journal" "$work/manifests"
for unit in $(systemctl list-unit-files --no-legend --no-pager 'llama-*' | cut -d ' ' -f 1); do
    journalctl --unit "$unit" --since "$since" --output short-iso-precise --no-pager --quiet >"$work/journal/$unit.log"
    systemctl show "$unit" \
        --property Id,ActiveState,SubState,Result,NRestarts,ExecMainStatus,MainPID,ActiveEnterTimestamp >>"$work/units.txt"
    echo >>"$work/units.txt"
done
journalctl --dmesg --since "$since" --output short-iso-precise --no-pager --quiet >"$work/journal/kernel.log" || true
for manifest in /opt/llama.cpp/*/manifest.json; do
    # `current` is a link to one of the others.
    if [ -f "$manifest" ] && [ ! -L "$(dirname "$manifest")" ]; then
        cp "$manifest" "$work/manifests/$(basename "$(dirname "$manifest")").json"
    fi
done
if [ -d /var/log/llama-harness ]; then
    cp -R /var/log/llama-harness "$work/logs"
fi
chmod -R u=rwX,go=rX "$work"
umask 077
tar --create --gzip --file "$archive" --directory "$work" .
