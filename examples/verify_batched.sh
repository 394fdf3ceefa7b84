#!/bin/bash
# Verify the proof of a batched signature with openssl and sha256sum (and bash, sed, cmp).
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
number() { [[ $1 =~ ^(0|[1-9][0-9]{0,17})$ ]] || die "number $1"; }

# The lines: the head, the path, a blank line, the checkpoint's five, a blank line, the signature.
[ "$(tail -c 1 "$proof" | od -An -tx1)" = " 0a" ] || die "no newline at the end"
[ "$(tr -d '\000' <"$proof" | wc -c)" = "$(wc -c <"$proof")" ] || die "a zero byte"
mapfile -t line <"$proof"
[ "${line[0]}" = "c2sp.org/tlog-proof@v1" ] || die "header"
[[ ${line[1]} == "extra "* && ${line[2]} == "index "* ]] || die "extra and index"
extra=${line[1]#extra } index=${line[2]#index }
canonical "$extra"; number "$index"
at=3 path=()
while [ -n "${line[at]-}" ]; do canonical "${line[at]}"; path+=("$(unbase64 "${line[at]}")"); at=$((at + 1)); done
[ ${#line[@]} = $((at + 8)) ] && [ -z "${line[at + 6]}" ] || die "lines"
origin=${line[at + 1]} size=${line[at + 2]} root=${line[at + 3]}
first=${line[at + 4]#hsmcore/batch-root/v1 } when=${line[at + 5]#time }
[[ ${line[at + 4]} == "hsmcore/batch-root/v1 "* && ${line[at + 5]} == "time "* ]] || die "extension lines"
[[ ${origin%/*} =~ ^[!-*,-~]{1,64}$ && $origin == */* ]] || die "origin"
for one in "${origin##*/}" "$size" "$first"; do number "$one"; done
[[ $when =~ ^(0|[1-9][0-9]{0,18})$ ]] || die "time"
canonical "$root"

# The leaf: kind, number, digest and blinder.
extra=$(unbase64 "$extra")
[ ${#extra} = 18 ] || [ ${#extra} = 82 ] || die "extra"
case $((16#${extra:0:2})) in 1 | 2 | 3 | 4 | 7 | 8) ;; *) die "kind" ;; esac
[ "${extra:2:16}" = "$(printf '%016x' $((first + index)))" ] && [ "$index" -lt "$size" ] || die "index"
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

# The signature of the root: four bytes that name origin and key, then Ed25519.
public=$(openssl pkey -pubin -in "$key" -outform DER | od -An -v -tx1 | tr -d ' \n')
[ "${public:0:24}" = 302a300506032b6570032100 ] || die "not an Ed25519 key"
[[ ${line[at + 7]} == $'\xe2\x80\x94 '"$origin "* ]] || die "signature line"
signature=${line[at + 7]##* }
canonical "$signature"
signature=$(unbase64 "$signature")
[ ${#signature} = 136 ] || die "signature"
name=$(printf '%s\n' "$origin" | od -An -v -tx1 | tr -d ' \n')
[ "${signature:0:8}" = "$(sha "${name}01${public:24}" | cut -c1-8)" ] || die "another key"
binary "${signature:8}" >"$work/signature"
printf '%s\n' "${line[@]:at + 1:5}" >"$work/text"
openssl pkeyutl -verify -pubin -inkey "$key" -rawin -in "$work/text" -sigfile "$work/signature" >/dev/null ||
  die "signature"
echo "$origin $((first + index))"
