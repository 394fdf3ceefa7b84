"""static/proof.js against the definitions of RFC 6962: it accepts every valid proof and no changed one."""

from __future__ import annotations

import base64
import hashlib

import pytest

pytestmark = [pytest.mark.browser]
SIZES = range(1, 34)


def node(left, right):
    return hashlib.sha256(b"\x01" + left + right).digest()


def split(count):
    return 1 << (count - 1).bit_length() - 1


def root(leaves):
    """MTH of section 2.1."""
    if len(leaves) == 1:
        return leaves[0]
    k = split(len(leaves))
    return node(root(leaves[:k]), root(leaves[k:]))


def inclusion(m, leaves):
    """PATH of section 2.1.1."""
    if len(leaves) == 1:
        return []
    k = split(len(leaves))
    if m < k:
        return [*inclusion(m, leaves[:k]), root(leaves[k:])]
    return [*inclusion(m - k, leaves[k:]), root(leaves[:k])]


def consistency(m, leaves, whole=True):
    """SUBPROOF of section 2.1.2."""
    if m == len(leaves):
        return [] if whole else [root(leaves)]
    k = split(len(leaves))
    if m <= k:
        return [*consistency(m, leaves[:k], whole), root(leaves[k:])]
    return [*consistency(m - k, leaves[k:], False), root(leaves[:k])]


def text(data):
    return base64.b64encode(data).decode()


CHECK = """async (cases) => {
  const {rootOfInclusion, checkConsistency, leaf, bytes, hexOf} = await import('/proof.js');
  const wrong = [];
  const same = (a, b) => hexOf(a) === hexOf(b);
  const fails = async (work) => { try { return !(await work()); } catch { return true; } };
  for (const {line, index, size, path, root} of cases.inclusion) {
    const start = await leaf(line), hashes = path.map(bytes), wanted = bytes(root);
    const holds = async (at, of, way, from) => same(await rootOfInclusion(from, BigInt(at), BigInt(of), way), wanted);
    if (!await holds(index, size, hashes, start)) wrong.push(['inclusion', index, size]);
    const bent = [[index, size, hashes, await leaf(line + ' ')], [index, size, [...hashes, start], start]];
    if (size > 1) bent.push([index ^ 1, size, hashes, start], [index, size, hashes.slice(1), start],
                            [index, size, hashes.slice(0, -1), start]);
    for (let at = 0; at < hashes.length; at++) {
      const other = hashes.map((one) => one.slice());
      other[at][7] ^= 1;
      bent.push([index, size, other, start]);
    }
    for (const one of bent) if (!await fails(() => holds(...one))) wrong.push(['accepted', index, size]);
  }
  for (const {old, size, oldRoot, root, path} of cases.consistency) {
    const hashes = path.map(bytes), first = bytes(oldRoot), second = bytes(root);
    const holds = (a, b, c, d, way) => checkConsistency(BigInt(a), b, BigInt(c), d, way).then(() => true);
    if (await fails(() => holds(old, first, size, second, hashes))) wrong.push(['consistency', old, size]);
    const other = second.slice();
    other[0] ^= 1;
    const bent = [[old, other, size, second, hashes], [old, first, size, other, hashes],
                  [old, first, size, second, [...hashes, first]]];
    for (const less of hashes.length ? [hashes.slice(1), hashes.slice(0, -1)] : []) {
      bent.push([old, first, size, second, less]);
    }
    if (old !== size) bent.push([size, second, old, first, hashes]);
    for (const one of bent) if (!await fails(() => holds(...one))) wrong.push(['accepted', old, size]);
  }
  return wrong;
}"""


def test_every_proof_of_every_small_tree(scene, page):
    lines = [f'{{"seq":{number + 1},"text":"ü{number}"}}' for number in range(max(SIZES))]
    leaves = [hashlib.sha256(b"\x00" + line.encode()).digest() for line in lines]
    included = [
        {
            "line": lines[index], "index": index, "size": size, "root": text(root(leaves[:size])),
            "path": [text(item) for item in inclusion(index, leaves[:size])],
        }
        for size in SIZES for index in range(size)
    ]  # fmt: skip
    consistent = [
        {
            "old": old, "size": size, "oldRoot": text(root(leaves[:old])), "root": text(root(leaves[:size])),
            "path": [text(item) for item in consistency(old, leaves[:size])],
        }
        for size in SIZES for old in range(1, size + 1)
    ]  # fmt: skip
    made = page()
    made.goto(scene(callers=0).address)
    assert made.evaluate(CHECK, {"inclusion": included, "consistency": consistent}) == []
