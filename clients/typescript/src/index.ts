/** hsmcore-client: signatures from `hsmcore gateway`. Reading order: key-manager, options, client, link, connection, job, wire. */

export { type BatchedSignature, type BatchProof, readBatchProof, verifyBatched } from "./batched.js";
export { Client, type ClientEvents, type Receipt } from "./client.js";
export { HsmError } from "./errors.js";
export { type BatchedBy, KeySet, KeySetRefused, type KeyEntry, type KeySetMoment, type KeyState } from "./key-set.js";
export { KeyManager, KeyManagerFactory, type GatewayOptions, type KeyManagerConfig } from "./key-manager.js";
export type { ClientOptions, RequestOptions, VerifyOptions } from "./options.js";
export type { SignBatchedOptions, SignManyOptions, SignOptions } from "./options.js";
export { payload, type OrderedKind } from "./payload.js";
export { verifyPosition } from "./position.js";
export type { Unfinished } from "./unfinished.js";
export type { Algorithm, Key, Kind, Level, TraceParent } from "./wire.js";
