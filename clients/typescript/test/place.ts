/** The gateway that a test talks to: the one that HSMCORE_TEST_GATEWAY describes, as `keyManager.gateway` does in JSON,
 * or one of the test's own. */

import type { GatewayOptions } from "hsmcore-client";

import { TestGateway } from "./gateway.js";

export interface Place {
  options: GatewayOptions & { address: string };
  end(): Promise<void>;
}

const described = process.env["HSMCORE_TEST_GATEWAY"];

/** Where there is a gateway and a token, and no stand-in. */
export const real = described === undefined ? undefined : (JSON.parse(described) as Place["options"]);

export async function place(): Promise<Place> {
  if (real) return { options: real, end: () => Promise.resolve() };
  const gateway = new TestGateway();
  await gateway.listen();
  return { options: { address: gateway.address }, end: () => gateway.end() };
}
