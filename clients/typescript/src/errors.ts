/** What can go wrong, as the gateway says it or as this end finds it. */

export interface Fault {
  /** A row of hsmcore's status table, such as "QUEUE_FULL". */
  status: string;
  /** The class of the status, such as "MEMBER_DOWN": what mends the failure. */
  class: string;
  retryable?: boolean;
  maybeSigned?: boolean;
  retryAfterMs?: number;
  holder?: string;
  request?: number | undefined;
  hint?: string;
  cause?: unknown;
}

/** The one class of errors of this package. */
export class HsmError extends Error {
  override readonly name: string = "HsmError";
  readonly status: string;
  readonly class: string;
  /** The same call may succeed a moment later. */
  readonly retryable: boolean;
  /** A signature may exist all the same: have the message signed again only under the same key. */
  readonly maybeSigned: boolean;
  /** How long to wait before the next attempt, where it is known, else 0. */
  readonly retryAfterMs: number;
  /** Of NOT_HOLDER: the fleet's name of the host that holds the epoch, or "". */
  readonly holder: string;
  /** Of a gateway's refusal: the number of the request, which its audit records have as `via.request`. */
  readonly request: number | undefined;
  /** What to do next, or "". */
  readonly hint: string;

  constructor(message: string, fault: Fault) {
    const { hint = "", cause } = fault;
    const says = message.endsWith(hint) ? message : `${message.replace(/[^.!?]$/, "$&.")} ${hint}`;
    super(says, cause === undefined ? undefined : { cause });
    this.status = fault.status;
    this.class = fault.class;
    this.retryable = fault.retryable ?? false;
    this.maybeSigned = fault.maybeSigned ?? false;
    this.retryAfterMs = fault.retryAfterMs ?? 0;
    this.holder = fault.holder ?? "";
    this.request = fault.request;
    this.hint = hint;
  }

  /** The same error, of a request that another attempt may have had signed. */
  asMaybeSigned(): HsmError {
    return this.maybeSigned ? this : new HsmError(this.message, { ...this.fault, maybeSigned: true });
  }

  private get fault(): Fault {
    const { status, class: kind, retryable, maybeSigned, retryAfterMs, holder, request, hint, cause } = this;
    return { status, class: kind, retryable, maybeSigned, retryAfterMs, holder, request, hint, cause };
  }
}

export const badArgument = (message: string, hint = ""): HsmError =>
  new HsmError(message, { status: "BAD_ARGUMENT", class: "REQUEST_FATAL", hint });

export const closed = (message: string, hint = ""): HsmError =>
  new HsmError(message, { status: "CLOSED", class: "REQUEST_FATAL", hint });

/** The gateway cannot be reached, or was lost before it answered. */
export const lost = (message: string, rest: Partial<Fault> = {}): HsmError =>
  new HsmError(message, { status: "HOST_LOST", class: "MEMBER_DOWN", retryable: !rest.maybeSigned, ...rest });
