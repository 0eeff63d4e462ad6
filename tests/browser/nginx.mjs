// The sample configuration of nginx, at work.

import fs from "node:fs";
import https from "node:https";
import os from "node:os";
import path from "node:path";

import { freePort } from "./net.mjs";
import { Program } from "./programs.mjs";

/** nginx with the sample of the documentation. Only addresses and paths are other ones. */
export class Nginx {
  static async start({ sample, folder, upstreams, certificate, log }) {
    const nginx = new Nginx();
    nginx.port = await freePort();
    const plain = await freePort();
    const site = path.join(folder, "site.conf");
    fs.writeFileSync(site, replaceAll(fs.readFileSync(sample, "utf8"), [
      ["listen 80;", `listen 127.0.0.1:${plain};`],
      ["listen [::]:80;", ""],
      ["listen 443 ssl;", `listen 127.0.0.1:${nginx.port} ssl;`],
      ["listen [::]:443 ssl;", ""],
      ["127.0.0.1:5001", `127.0.0.1:${upstreams[0]}`],
      ["127.0.0.1:5002", `127.0.0.1:${upstreams[1]}`],
      ["/etc/letsencrypt/live/play.example.org/fullchain.pem", certificate.cert],
      ["/etc/letsencrypt/live/play.example.org/privkey.pem", certificate.key],
    ]));
    const main = path.join(folder, "nginx.conf");
    const temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
      .map((name) => `${name}_temp_path ${folder}/${name};`).join(" ");
    fs.writeFileSync(main, `
      daemon off;
      ${process.getuid() === 0 ? `user ${os.userInfo().username};` : ""}
      worker_processes 1;
      pid ${folder}/nginx.pid;
      error_log stderr warn;
      events { worker_connections 512; }
      http { access_log off; ${temporary} include ${site}; }
    `);
    nginx.program = new Program(process.env.NGINX ?? "/usr/sbin/nginx", ["-p", folder, "-c", main], log);
    await nginx.program.listening(nginx.port);
    return nginx;
  }

  stop() {
    return this.program.stop();
  }
}

/** Replaces what the sample must have. */
function replaceAll(text, replacements) {
  return replacements.reduce((text, [from, to]) => {
    if (!text.includes(from)) throw new Error(`the sample configuration has no \`${from}\``);
    return text.replaceAll(from, to);
  }, text);
}

/** Which of the servers nginx asks for this room: the one whose proxy gets a connection. */
export async function serverOfRoom(port, room, proxies) {
  const before = proxies.map((proxy) => proxy.accepted);
  await upgrade(port, `/?room=${room}`);
  const reached = proxies.filter((proxy, index) => proxy.accepted > before[index]);
  if (reached.length !== 1) throw new Error(`${room} has reached ${reached.length} servers`);
  return proxies.indexOf(reached[0]);
}

/** Opens a WebSocket and closes it again. */
function upgrade(port, url) {
  return new Promise((resolve, reject) => {
    const request = https.get({
      host: "127.0.0.1",
      port,
      path: url,
      rejectUnauthorized: false,
      agent: false,
      headers: {
        Connection: "Upgrade",
        Upgrade: "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Protocol": "tandem.1",
      },
    });
    request.on("upgrade", (_, socket) => { socket.destroy(); resolve(); });
    request.on("response", (response) => {
      response.resume();
      reject(new Error(`${url} is answered with ${response.statusCode} and no WebSocket`));
    });
    request.on("error", reject);
  });
}
