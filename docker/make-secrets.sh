#!/usr/bin/env bash
# Write the secrets that compose.yaml mounts: make-secrets.sh [FOLDER]. A folder that is there already stays as it is.
#
# Compose mounts each file as it is, and services run as different users: so the files may be read, but only their owner
# gets into the folder.
set -euo pipefail
FOLDER=${1:-$(dirname "${BASH_SOURCE[0]}")/secrets}
[ ! -e "$FOLDER" ] || { echo "$FOLDER is there already; nothing changed"; exit 0; }

random() { od -vAn -N24 -tx1 /dev/urandom | tr -d ' \n'; }

mkdir -p "$(dirname "$FOLDER")"
NEW=$(mktemp -d "$FOLDER.XXXXXX") # as 0700
trap 'rm -rf "$NEW"' EXIT
DATABASE=$(random) OPERATOR=$(random) KEY=$(random) SECRET=$(random)

printf %s "$DATABASE" > "$NEW/database_password"

# Profiles of Prefect: settings that no environment variable of a container holds.
cat > "$NEW/prefect_server.toml" <<TOML
active = "server"

[profiles.server]
PREFECT_SERVER_DATABASE_PASSWORD = "$DATABASE"
PREFECT_SERVER_API_AUTH_STRING = "operator:$OPERATOR"
TOML
cat > "$NEW/prefect_client.toml" <<TOML
active = "client"

[profiles.client]
PREFECT_API_AUTH_STRING = "operator:$OPERATOR"
TOML

cat > "$NEW/s3_store.json" <<JSON
{
  "identities": [
    {
      "name": "aqnet",
      "credentials": [{"accessKey": "$KEY", "secretKey": "$SECRET"}],
      "actions": ["Admin", "Read", "Write", "List", "Tagging"]
    }
  ]
}
JSON
cat > "$NEW/s3_client" <<INI
[default]
aws_access_key_id = $KEY
aws_secret_access_key = $SECRET
INI

chmod 444 "$NEW"/*
mv "$NEW" "$FOLDER"
echo "Secrets are in $FOLDER; sign in at Prefect's page with operator:<...> of prefect_client.toml"
