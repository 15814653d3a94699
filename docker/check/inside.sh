#!/bin/sh
# Runs in the container: says what is enforced, then makes a product there. Ends with a code other than 0 when something
# is not as the image promises.
set -eu

expect() { # what, wanted, found
    [ "$2" = "$3" ] || { echo "FAILED $1: expected $2; found $3" >&2; exit 1; }
    echo "ok     $1: $3"
}

refuses() { (: > "$1") 2>/dev/null && { rm -f "$1"; echo writable; } || echo refused; }

expect "user" 10001:10001 "$(id -u):$(id -g)"
expect "capabilities" 0000000000000000 "$(awk '/^CapEff/{print $2}' /proc/self/status)"
expect "no new privileges" 1 "$(awk '/^NoNewPrivs/{print $2}' /proc/self/status)"
expect "root file system" ro "$(awk '$2 == "/" {split($4, option, ","); print option[1]}' /proc/mounts | tail -n 1)"
expect "write to /opt/aqnet" refused "$(refuses /opt/aqnet/x)"
expect "write to /etc" refused "$(refuses /etc/x)"
expect "write to /data" writable "$(refuses /data/x)"
# /sys/class/net has `bonding_masters` too where the module is loaded.
expect "network interfaces" lo "$(awk -F: 'NR > 2 {gsub(" ", "", $1); print $1}' /proc/net/dev | paste -sd ' ' -)"
for tool in gcc cc g++ c++ clang make; do
    ! command -v "$tool" >/dev/null || { echo "FAILED: a compiler, $tool" >&2; exit 1; }
done
echo "ok     no compiler"

aqnet --version
if [ -n "${CHECK_DEFAULT:-}" ]; then
    aqnet run --out /data/out
else # the same stages on a smaller country
    aqnet simulate --out /data/simulated --days 3 --n-stations 60 --bbox 110 34 113 37
    aqnet run --source cnemc --input /data/simulated/archive --stations /data/simulated/stations.csv \
        --start 2019-12-02 --end 2019-12-03 --bbox 110 34 113 37 --out /data/out --domain simulated
fi
cd /data/out/products
sha256sum --check --quiet SHA256SUMS
echo "ok     checksums of $(wc -l < SHA256SUMS) files"
