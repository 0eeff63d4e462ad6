// The programs that the tests run, each with its own folder and ports.

import { spawn, execFileSync } from "node:child_process";
import { once } from "node:events";
import fs from "node:fs";
import net from "node:net";
import path from "node:path";

/** A program that is running. */
export class Program {
  constructor(command, args, log, env = {}) {
    this.name = path.basename(command);
    this.log = log;
    const out = fs.openSync(log, "a");
    this.child = spawn(command, args, { stdio: ["ignore", out, out], env: { ...process.env, ...env } });
    fs.closeSync(out);
    this.child.on("error", (error) => fs.appendFileSync(log, `${error}\n`));
    this.ended = once(this.child, "exit").catch(() => {});
  }

  get isRunning() {
    return this.child.pid !== undefined && this.child.exitCode === null && this.child.signalCode === null;
  }

  /** Waits until it listens there. */
  async listening(port, patience_ms = 30_000) {
    const deadline = Date.now() + patience_ms;
    while (Date.now() < deadline && this.isRunning) {
      if (await canConnect(port)) return;
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
    throw new Error(`${this.name} does not listen on port ${port}:\n${fs.readFileSync(this.log, "utf8").slice(-2000)}`);
  }

  /** Asks it to leave, and sees that it does. */
  async stop() {
    if (!this.isRunning) return;
    this.child.kill("SIGTERM");
    const patience = setTimeout(() => this.child.kill("SIGKILL"), 15_000);
    await this.ended;
    clearTimeout(patience);
  }
}

function canConnect(port) {
  return new Promise((resolve) => {
    const socket = net.connect(port, "127.0.0.1");
    socket.on("connect", () => { socket.destroy(); resolve(true); });
    socket.on("error", () => resolve(false));
  });
}

/** Makes a certificate for this machine that nobody vouches for. */
export function makeCertificate(folder) {
  const [cert, key] = [path.join(folder, "cert.pem"), path.join(folder, "key.pem")];
  execFileSync("openssl", ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
    "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
    "-keyout", key, "-out", cert], { stdio: "ignore" });
  return { cert, key };
}
