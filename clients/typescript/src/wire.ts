/** The frames of hsmcore-wire/1, as bytes and as values: a client's half. docs/WIRE.md specifies them. */

export * from "./answers.js";
export * from "./frames.js";
export * from "./requests.js";
export * from "./values.js";
