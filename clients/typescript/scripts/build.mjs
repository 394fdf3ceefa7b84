// Builds the package into dist, as ES modules and as CommonJS, and its tests into build; nothing if both are as new as
// their sources.
import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

process.chdir(fileURLToPath(new URL("..", import.meta.url)));

const STAMP = "build/.stamp";

const tsc = (...args) =>
  execFileSync(process.execPath, ["node_modules/typescript/bin/tsc", ...args], { stdio: "inherit" });
const format = (folder, type) => writeFileSync(`${folder}/package.json`, JSON.stringify({ type }));

function fingerprint() {
  const hash = createHash("sha256");
  const files = ["src", "test", "scripts"].flatMap((folder) => readdirSync(folder).map((name) => `${folder}/${name}`));
  const settings = [
    "package.json",
    "package-lock.json",
    ...readdirSync(".").filter((name) => /^tsconfig.*\.json$/.test(name)),
  ];
  for (const file of [...files, ...settings].sort()) hash.update(`${file}\0`).update(readFileSync(file)).update("\0");
  return hash.digest("hex");
}

function build(wanted) {
  if (existsSync(STAMP) && readFileSync(STAMP, "utf8") === wanted) return;
  rmSync("dist", { recursive: true, force: true });
  rmSync("build", { recursive: true, force: true });
  tsc("-p", "tsconfig.build.json", "--outDir", "dist/esm");
  // The same sources; the module format of an output folder is said by the package.json in it.
  const commonjs = ["--module", "commonjs", "--moduleResolution", "bundler", "--verbatimModuleSyntax", "false"];
  tsc("-p", "tsconfig.build.json", ...commonjs, "--outDir", "dist/cjs");
  format("dist/esm", "module");
  format("dist/cjs", "commonjs");
  tsc("-p", "tsconfig.test.json");
  writeFileSync(STAMP, wanted);
}

build(fingerprint());
