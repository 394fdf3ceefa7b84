// Requests to the server, and the dialog before anything is changed.

import { byId, say } from "./dom.js";

const KEY = "hsmcore token";

/** The token lives in this tab only. */
export const token = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

export async function request(path, options = {}) {
  const headers = { ...options.headers };
  if (token.get()) headers.authorization = `Bearer ${token.get()}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store" });
  } catch {
    throw new Error("the server does not answer");
  }
  const body = await response.json().catch(() => ({}));
  if (!response.ok) throw Object.assign(new Error(body.message ?? `status ${response.status}`), { status: response.status });
  return body;
}

/** Asks for a reason, then for the action. `said(text)` tells the outcome. */
export function actions(said) {
  const dialog = byId("ask"), form = byId("ask-form"), reason = byId("ask-reason");
  let order = null;
  byId("ask-no").addEventListener("click", () => dialog.close());
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const yes = byId("ask-yes");
    yes.disabled = true;
    say(byId("ask-error"), "");
    try {
      const body = JSON.stringify({ ...order.target, reason: reason.value });
      const done = await request(`/api/actions/${order.action}`, {
        method: "POST", body, headers: { "content-type": "application/json" },
      });
      dialog.close();
      said(`${order.title}: asked for${done.auditSeq ? `, record ${done.auditSeq}` : ""}. It is followed within a second.`);
    } catch (error) {
      say(byId("ask-error"), error.message);
    } finally {
      yes.disabled = false;
    }
  });
  return (action, target, title) => {
    order = { action, target, title };
    say(byId("ask-title"), title);
    say(byId("ask-text"), EFFECTS[action] ?? "");
    say(byId("ask-error"), "");
    reason.value = "";
    dialog.showModal();
    reason.focus();
  };
}

const EFFECTS = {
  drain: "It gets no further requests, also after restarts, until it is resumed. What it is doing it ends.",
  resume: "It gets requests again once its probes are good.",
  readmit: "It logs in anew and is tried. Mend the cause first: a login that is refused again counts towards the token’s lock.",
  force: "This level is preferred to all others. If it fails, the others follow in their order.",
  release: "Levels are used in their own order again.",
  "emergency-disable": "The emergency key is not used; if it signs now, it ends.",
  "emergency-enable": "The emergency key may be used when nothing else can sign.",
  rotate: "A new key is made and takes over; the old one goes on verifying for the overlap.",
  "rotate-abort": "The rotation under way is undone; the old key goes on signing.",
};
