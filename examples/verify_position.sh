#!/bin/bash
# Verify what a position of a public log is bound to, with openssl and sha256sum (and bash, sed, iconv).
#
#     ./verify_position.sh POLICY_FILE DIGEST_HEX POSITION PROOF_FILE
#
# If it ends with 0: no other digest has this position in any history of the log that the policy's quorum of witnesses
# has seen. DIGEST_HEX is the SHA-256 of the payload that was signed. docs/PUBLIC_LOG.md has the formats.
set -euo pipefail
export LC_ALL=C
policy=$1 digest=$2 position=$3 proof=$4
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
die() { echo "NOT valid: $1" >&2; exit 1; }
binary() { printf '%b' "$(sed 's/../\\x&/g' <<<"$1")"; }            # hexadecimal to bytes
hex() { od -An -v -tx1 | tr -d ' \n'; }
unbase64() { printf '%s' "$1" | openssl base64 -d -A | hex; }
canonical() { [ "$(binary "$(unbase64 "$1")" | openssl base64 -A)" = "$1" ] || die "base64"; }
sha() { binary "$1" | sha256sum | cut -d' ' -f1; }
number() { [[ $1 =~ ^(0|[1-9][0-9]{0,18})$ && (${#1} -lt 19 || ! $1 > 9223372036854775807) ]] || die "number $1"; }
text() {  # A file of lines of UTF-8, the last one with its end.
  iconv -f UTF-8 -t UTF-8 "$1" >"$work/utf8" 2>&1 && [ "$(wc -c <"$1")" -le 65536 ] || die "not UTF-8"
  [ "$(tail -c 1 "$1" | hex)" = 0a ] || die "no newline at the end"
  [ "$(tr -d '\000' <"$1" | wc -c)" = "$(wc -c <"$1")" ] || die "a zero byte"
}

# The policy: origin, first position, quorum, witnesses.
text "$policy"; text "$proof"
mapfile -t rule <"$policy"
[[ ${rule[0]} == "origin "* && ${rule[1]} == "first "* && ${rule[2]-} =~ ^quorum\ ([1-9][0-9]?)$ ]] || die "policy"
origin=${rule[0]#origin } first=${rule[1]#first } quorum=${BASH_REMATCH[1]}
number "$first"; number "$position"
declare -A key
form=$'^witness ([^ +\x01-\x1f]+)\\+([0-9a-f]{8})\\+(B[A-P][A-Za-z0-9+/]{42})$'
for one in "${rule[@]:3}"; do
  [[ $one =~ $form ]] || die "witness"
  name=${BASH_REMATCH[1]} id=${BASH_REMATCH[2]} data=$(unbase64 "${BASH_REMATCH[3]}")
  [ "$(sha "$(printf '%s\n' "$name" | hex)$data" | cut -c1-8)" = "$id" ] || die "key id"
  key["$name $id"]=${data:2}
done

# The proof: index, path, a blank line, the checkpoint's three lines, a blank line, the signatures.
mapfile -t line <"$proof"
[[ ${line[0]} = "c2sp.org/tlog-proof@v1" && ${line[1]-} == "index "* ]] || die "header"
index=${line[1]#index }
number "$index"
at=2 path=()
while [ -n "${line[at]-}" ]; do canonical "${line[at]}"; path+=("$(unbase64 "${line[at]}")"); at=$((at + 1)); done
[ ${#line[@]} -ge $((at + 6)) ] && [ ${#line[@]} -le $((at + 69)) ] && [ ${#path[@]} -le 63 ] && [ -z "${line[at + 4]}" ] || die "lines"
size=${line[at + 2]} root=${line[at + 3]}
[ "${line[at + 1]}" = "$origin" ] || die "another log"
number "$size"; canonical "$root"
[ "$index" -lt "$size" ] && [ $((position - first)) = "$index" ] || die "another position"
[[ $digest =~ ^[0-9a-f]{64}$ ]] || die "digest"
node=$(sha "0001$digest")

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
[ $sn = 0 ] && [ "$node" = "$(unbase64 "$root")" ] || die "another digest"

# The cosignatures: key id, time in eight bytes, Ed25519. Lines of the log and of witnesses that nobody named are ignored.
declare -A seen
form=$'^\xe2\x80\x94 ([^ +\x01-\x1f]+) ([A-Za-z0-9+/]+={0,2})$'
for one in "${line[@]:at + 5}"; do
  [[ $one =~ $form ]] || die "signature line"
  name=${BASH_REMATCH[1]} value=${BASH_REMATCH[2]}
  canonical "$value"
  value=$(unbase64 "$value")
  [ ${#value} -ge 10 ] || die "signature line"
  known=${key["$name ${value:0:8}"]-}
  [ "$known" ] || continue
  [ ${#value} = 152 ] || die "cosignature"
  printf 'cosignature/v1\ntime %u\n' "0x${value:8:16}" >"$work/text"
  printf '%s\n' "${line[@]:at + 1:3}" >>"$work/text"
  binary "302a300506032b6570032100$known" >"$work/key"
  binary "${value:24}" >"$work/signature"
  openssl pkeyutl -verify -pubin -keyform DER -inkey "$work/key" -rawin -in "$work/text" -sigfile "$work/signature" \
    >/dev/null || die "cosignature"
  seen["$known"]=yes
done
[ ${#seen[@]} -ge "$quorum" ] || die "${#seen[@]} witnesses of $quorum"
echo ${#seen[@]}
