// Brings the parts of a page that have the attribute data-live up to date, by fetching them again.
"use strict";

const away = document.getElementById("away");

async function refresh(part) {
  const response = await fetch(part.dataset.live, { cache: "no-store", redirect: "error" });
  if (!response.ok) throw new Error(`status ${response.status}`);
  const found = new DOMParser().parseFromString(await response.text(), "text/html");
  part.replaceChildren(...found.body.childNodes);
}

async function follow(part) {
  const pause = Number(part.dataset.seconds) * 1000;
  for (;;) {
    await new Promise((resume) => setTimeout(resume, pause));
    if (document.hidden) continue;
    try {
      await refresh(part);
      away.hidden = true;
    } catch {
      away.hidden = false;
    }
  }
}

document.querySelectorAll("[data-live]").forEach(follow);
