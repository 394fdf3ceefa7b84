// Follow the signed set of keys with Node.js alone (20 or newer).
//
//     node verify_key_set.mjs PUBLIC_KEY_HEX REMEMBERED_FILE NOTES_FILE [SKEW_SECONDS]
//
// REMEMBERED_FILE is this verifier's memory: if it is missing, it begins with the first note, which the public key must
// have signed. Then each note must be signed by a key of the one before. Prints the keys that are good now, or exits
// with 1. docs/KEYSET.md has the format and the rules.
import { isUtf8 } from "node:buffer";
import { createHash, createPublicKey, verify as verifySignature } from "node:crypto";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const FIRST = "§ hsmcore/key-set/v1\n";
const NUMBER = "(?:0|[1-9][0-9]{0,18})";
const HASH = "[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]="; // 32 bytes
const POINT = "[A-Za-z0-9+/]{86}[AEIMQUYcgkosw048]="; // 65 bytes
const KEY = new RegExp(
  `^(?=key \\S+ ed25519 \\S+ retired |.*[-=]$)key (-|${NUMBER}) (?:(ed25519) (${HASH})|(?!ed25519 )([a-z0-9-]{1,32}) (${POINT})) ` +
    `(?:(next|current|other|emergency) (${NUMBER}) -|(overlap|retired) (${NUMBER}) (${NUMBER})) (-|${NUMBER}) (-|${HASH})(?: (${NUMBER}))?$`,
);
const NOTE = new RegExp(
  `^(${FIRST}([!-*,-~]{1,64})/keys\\n(${NUMBER})\\ntime ${NUMBER}\\n(?:good until (${NUMBER})\\n)?` +
    "kinds((?: [a-z0-9-]{1,32}){1,64})\\n((?:key [^\\n]*\\n)+))\\n((?:— [^ +\\x00-\\x1f]+ [A-Za-z0-9+/]+={0,2}\\n){1,64})$",
);

const SPKI = Buffer.from("302a300506032b6570032100", "hex");
const keyOf = (raw) => createPublicKey({ key: Buffer.concat([SPKI, raw]), format: "der", type: "spki" });

/** A note that is not to be believed. */
export class Refused extends Error {}

/** A set of keys and who signed it. `keys`: by public key in hexadecimal, its state, first and last second (or null),
 * and the last index of its batches (or null). `goodUntil`: demand now <= it + skew, so that no newer set can be withheld. */
export class KeySet {
  constructor(note) {
    const found = Buffer.byteLength(note) <= 65536 ? NOTE.exec(note) : null;
    const lines = found === null ? [] : found[6].split("\n").slice(0, -1).map((line) => KEY.exec(line));
    if (found === null || lines.includes(null)) throw new Refused("not a set of keys");
    [this.note, this.text, this.domain, this.serial] = [note, found[1], found[2], BigInt(found[3])];
    this.goodUntil = found[4] === undefined ? null : Number(found[4]);
    this.kinds = found[5].split(" ").slice(1);
    this.signatures = found[7].split("\n").slice(0, -1).map((line) => {
      const [, name, text] = line.split(" ");
      const value = Buffer.from(text, "base64");
      if (value.length < 5 || value.toString("base64") !== text) throw new Refused("not base64");
      return [name, value];
    });
    const versions = lines.map((line) => line[1]).filter((version) => version !== "-");
    this.keys = new Map(lines.map((line) => [
      Buffer.from(line[3] ?? line[5], "base64").toString("hex"),
      [line[6] ?? line[8], Number(line[7] ?? line[9]), line[10] === undefined ? null : Number(line[10]), line[13] ?? null],
    ]));
    const current = [...this.keys].filter(([, [state]]) => state === "current").map(([key]) => key);
    if (this.keys.size !== lines.length || new Set(versions).size !== versions.length || current.length !== 1) {
      throw new Refused("it names a key twice, or no current one");
    }
    if (!this.signedBy(this.keys.keys()).includes(current[0])) throw new Refused("its current key has not signed it");
  }

  /** Those of some keys (hexadecimal) that signed it. A wrong signature of one of them is refused. */
  signedBy(publicKeys) {
    const name = `${this.domain}/keys`;
    const signed = ([...publicKeys]).filter((hex) => hex.length === 64).map((hex) => {
      const key = Buffer.from(hex, "hex");
      const head = Buffer.concat([Buffer.from(`${name}\n\x01`), key]);
      const id = createHash("sha256").update(head).digest().subarray(0, 4);
      const own = this.signatures.filter(([signer, value]) => signer === name && value.subarray(0, 4).equals(id));
      const known = keyOf(key);
      for (const [, value] of own) {
        if (!verifySignature(null, Buffer.from(this.text), known, value.subarray(4))) throw new Refused("a signature is wrong");
      }
      return own.length > 0 ? hex : null;
    });
    return signed.filter((hex) => hex !== null);
  }

  /** Whether a signature that is made now (Unix seconds) may be of this key; and of a payload of this kind. */
  accepts(publicKey, now, skew = 300, kind = null) {
    const [state, begun, ends] = this.keys.get(publicKey) ?? ["retired", 0, 0];
    const good = state !== "retired" && begun - skew <= now && (ends === null || now <= ends + skew);
    return good && (kind === null || this.kinds.includes(kind));
  }

  /** Whether a proof of this domain, with this index, that holds under this key (verify_batched.mjs) is good. */
  acceptsBatch(publicKey, index, now, skew = 300) {
    const last = this.keys.get(publicKey)?.[3] ?? null;
    return this.accepts(publicKey, now, skew) || (last !== null && index <= BigInt(last));
  }

  /** The Ed25519 key (hexadecimal) that made a signature; null if no key did that is good now for this kind. */
  verify(message, signature, kind, now, skew = 300) {
    const good = [...this.keys.keys()].filter((hex) => hex.length === 64 && this.accepts(hex, now, skew, kind));
    return good.find((hex) => verifySignature(null, message, keyOf(Buffer.from(hex, "hex")), signature)) ?? null;
  }

  /** The set of a note, if it may follow this one; this one, if it is the same. */
  follow(note) {
    const next = new KeySet(note);
    if (next.domain !== this.domain || next.serial < this.serial) {
      throw new Refused(`it is of another domain, or older than serial ${this.serial}, which was seen`);
    }
    if (next.serial === this.serial) {
      if (next.text !== this.text) throw new Refused(`there are two sets of serial ${this.serial}`);
      return this;
    }
    if (next.serial > this.serial + 2n ** 20n) {
      throw new Refused(`serial ${next.serial} is more than 2^20 after ${this.serial}`);
    }
    const trusted = [...this.keys].filter(([, [state]]) => ["next", "current"].includes(state)).map(([key]) => key);
    if (next.signedBy(trusted).length === 0) throw new Refused(`no key that is trusted has signed serial ${next.serial}`);
    return next;
  }
}

if (process.argv[1] && import.meta.url === pathToFileURL(process.argv[1]).href) {
  const [publicKey, memory, notes, skew = "300"] = process.argv.slice(2);
  try {
    const read = (path) => {
      const data = readFileSync(path);
      if (!isUtf8(data)) throw new Refused("not UTF-8");
      return data.toString();
    };
    const [head, ...rest] = read(notes).split(FIRST);
    const given = rest.map((one) => FIRST + one);
    if (head !== "" || given.length === 0) throw new Refused("there is no note");
    const [begun, now] = [existsSync(memory), Date.now() / 1000];
    let known = new KeySet(begun ? read(memory) : given[0]);
    if (!begun && known.signedBy([publicKey]).length === 0) throw new Refused("the known key has not signed the first note");
    for (const note of given) {
      if (note === given.at(-1) || new KeySet(note).serial >= known.serial) known = known.follow(note);
    }
    writeFileSync(memory, known.note);
    console.log(known.domain, String(known.serial), ...[...known.keys.keys()].filter((key) => known.accepts(key, now, Number(skew))));
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    console.error(`NOT valid: ${error.message}`);
    process.exit(1);
  }
}
