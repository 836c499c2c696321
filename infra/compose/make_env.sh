#!/usr/bin/env bash
# Writes `.env` beside this file: .env.example with a random value for every empty line.
set -euo pipefail
cd "$(dirname "$0")"
if [ -e .env ]; then
    echo "peft-sweeps: infra/compose/.env is there already; its passwords are those of the volumes" >&2
    exit 2
fi
umask 077
while IFS= read -r line; do
    if [[ "$line" =~ ^[A-Z0-9_]+=$ ]]; then
        line="$line$(head -c 32 /dev/urandom | base64 | tr -dc 'a-zA-Z0-9')"
    fi
    printf '%s\n' "$line"
done <.env.example >.env
