// A page that is read as a file may have no worker. The search then runs in a hidden frame of the
// page: the theme looks for IFrameWorker, and the plugin `offline` for a script of this name.
"use strict";

class IFrameWorker extends EventTarget {
  constructor(url) {
    super();
    this.waiting = []; // messages that came before the script was there
    const add = () => {
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.append(frame);
      const inside = frame.contentWindow, script = frame.contentDocument.createElement("script");
      inside.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }));
      inside.importScripts = (...urls) => Promise.all(urls.map(each => load(inside, each)));
      script.src = url;
      script.onload = () => {
        this.inside = inside;
        for (const data of this.waiting) this.postMessage(data);
      };
      frame.contentDocument.body.append(script);
    };
    if (document.body) add(); else addEventListener("DOMContentLoaded", add);
  }

  postMessage(data) {
    if (this.inside) this.inside.dispatchEvent(new MessageEvent("message", { data }));
    else this.waiting.push(data);
  }
}

function load(inside, url) {
  return new Promise((done, failed) => {
    const script = inside.document.createElement("script");
    Object.assign(script, { src: url, onload: done, onerror: failed });
    inside.document.body.append(script);
  });
}

if (location.protocol === "file:") Object.assign(window, { IFrameWorker, Worker: IFrameWorker });
