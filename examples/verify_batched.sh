#!/bin/bash
# Verify the proof of a batched signature with openssl and sha256sum (and bash, sed, iconv).
#
#     ./verify_batched.sh PUBLIC_KEY.pem MESSAGE_FILE PROOF_FILE
#
# Prints the domain with the epoch and the message's number, or exits with 1. docs/BATCHING.md has the formats.
set -euo pipefail
export LC_ALL=C
key=$1 message=$2 proof=$3
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
die() { echo "NOT valid: $1" >&2; exit 1; }
binary() { printf '%b' "$(sed 's/../\\x&/g' <<<"$1")"; }            # hexadecimal to bytes
unbase64() { printf '%s' "$1" | openssl base64 -d -A | od -An -v -tx1 | tr -d ' \n'; }
canonical() { [ "$(binary "$(unbase64 "$1")" | openssl base64 -A)" = "$1" ] || die "base64"; }
sha() { binary "$1" | sha256sum | cut -d' ' -f1; }
number() { [[ $1 =~ ^(0|[1-9][0-9]{0,18})$ && (${#1} -lt 19 || ! $1 > 9223372036854775807) ]] || die "number $1"; }

# The lines: the head, the path, a blank line, the checkpoint's five, a blank line, the signatures.
iconv -f UTF-8 -t UTF-8 "$proof" >"$work/utf8" 2>&1 && [ "$(wc -c <"$proof")" -le 65536 ] || die "not UTF-8"
[ "$(tail -c 1 "$proof" | od -An -tx1)" = " 0a" ] || die "no newline at the end"
[ "$(tr -d '\000' <"$proof" | wc -c)" = "$(wc -c <"$proof")" ] || die "a zero byte"
mapfile -t line <"$proof"
[ "${line[0]}" = "c2sp.org/tlog-proof@v1" ] || die "header"
[[ ${line[1]} == "extra "* && ${line[2]} == "index "* ]] || die "extra and index"
extra=${line[1]#extra } index=${line[2]#index }
canonical "$extra"; number "$index"
at=3 path=()
while [ -n "${line[at]-}" ]; do canonical "${line[at]}"; path+=("$(unbase64 "${line[at]}")"); at=$((at + 1)); done
[ ${#line[@]} -ge $((at + 8)) ] && [ ${#line[@]} -le $((at + 71)) ] && [ ${#path[@]} -le 63 ] && [ -z "${line[at + 6]}" ] || die "lines"
origin=${line[at + 1]} size=${line[at + 2]} root=${line[at + 3]}
first=${line[at + 4]#hsmcore/batch-root/v1 } when=${line[at + 5]#time }
[[ ${line[at + 4]} == "hsmcore/batch-root/v1 "* && ${line[at + 5]} == "time "* ]] || die "extension lines"
[[ ${origin%/*} =~ ^[!-*,-~]{1,64}$ && $origin == */* ]] || die "origin"
for one in "${origin##*/}" "$size" "$first" "$when"; do number "$one"; done
canonical "$root"

# The leaf: kind, number, digest and blinder.
extra=$(unbase64 "$extra")
[ ${#extra} = 18 ] || [ ${#extra} = 82 ] || die "extra"
case $((16#${extra:0:2})) in 1 | 2 | 3 | 4 | 7 | 8) ;; *) die "kind" ;; esac
[ $((first + index)) -ge 0 ] && [ "$index" -lt "$size" ] || die "index"
[ "${extra:2:16}" = "$(printf '%016x' $((first + index)))" ] || die "index"
node=$(sha "00${extra:0:18}$(sha256sum <"$message" | cut -d' ' -f1)${extra:18}")

# The way to the root (RFC 9162, section 2.1.3.2).
fn=$index sn=$((size - 1))
for sibling in "${path[@]}"; do
  [ ${#sibling} = 64 ] && [ $sn != 0 ] || die "path"
  if [ $((fn % 2)) = 1 ] || [ "$fn" = "$sn" ]; then
    node=$(sha "01$sibling$node")
    while [ $((fn % 2)) = 0 ] && [ "$fn" != 0 ]; do fn=$((fn / 2)) sn=$((sn / 2)); done
  else
    node=$(sha "01$node$sibling")
  fi
  fn=$((fn / 2)) sn=$((sn / 2))
done
[ $sn = 0 ] && [ "$node" = "$(unbase64 "$root")" ] || die "the message is not in this batch"

# The signature of the root: four bytes that name origin and key, then Ed25519. Those of other names or keys are ignored.
public=$(openssl pkey -pubin -in "$key" -outform DER | od -An -v -tx1 | tr -d ' \n')
[ "${public:0:24}" = 302a300506032b6570032100 ] && [ ${#public} = 88 ] || die "not an Ed25519 key"
id=$(sha "$(printf '%s\n' "$origin" | od -An -v -tx1 | tr -d ' \n')01${public:24}" | cut -c1-8)
printf '%s\n' "${line[@]:at + 1:5}" >"$work/text"
good="" form=$'^\xe2\x80\x94 ([^ +\x01-\x1f]+) ([A-Za-z0-9+/]+={0,2})$'
for one in "${line[@]:at + 7}"; do
  [[ $one =~ $form ]] || die "signature line"
  name=${BASH_REMATCH[1]} value=${BASH_REMATCH[2]}
  canonical "$value"
  value=$(unbase64 "$value")
  [ ${#value} -ge 10 ] || die "signature line"
  [ "$name" = "$origin" ] && [ "${value:0:8}" = "$id" ] || continue
  binary "${value:8}" >"$work/signature"
  openssl pkeyutl -verify -pubin -inkey "$key" -rawin -in "$work/text" -sigfile "$work/signature" >/dev/null ||
    die "signature"
  good=yes
done
[ "$good" ] || die "no signature by this key"
echo "$origin $((first + index))"
