// Renews the live part of the dashboard. Without it the page reloads itself as a whole.
"use strict";
const live = document.getElementById("live");
const age = document.querySelector("#age time");
const pause = Number(live.dataset.renew) * 1000;

async function renew() {
  if (!document.hidden && !String(getSelection())) {
    try {
      const answer = await fetch(live.dataset.source, { cache: "no-store" });
      if (!answer.ok) throw new Error(answer.status);
      live.innerHTML = await answer.text(); // our own server's page, every value escaped there
      const now = new Date();
      age.dateTime = now.toISOString();
      age.textContent = now.toISOString().slice(11, 19) + " UTC";
      document.body.classList.remove("stale");
    } catch {
      document.body.classList.add("stale");
    }
  }
  setTimeout(renew, pause);
}
setTimeout(renew, pause);
