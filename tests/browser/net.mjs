// What stands between the browser and the server.

import net from "node:net";

/** A port of this machine that nobody uses now. */
export function freePort() {
  return new Promise((resolve, reject) => {
    const server = net.createServer();
    server.on("error", reject);
    server.listen(0, "127.0.0.1", () => {
      const { port } = server.address();
      server.close(() => resolve(port));
    });
  });
}

/** Forwards TCP, and can be cut. */
export class Proxy {
  static async to(port) {
    const proxy = new Proxy(port);
    await new Promise((resolve, reject) => {
      proxy.server.on("error", reject);
      proxy.server.listen(0, "127.0.0.1", resolve);
    });
    proxy.port = proxy.server.address().port;
    return proxy;
  }

  constructor(port) {
    this.sockets = new Set();
    /** Connections so far. */
    this.accepted = 0;
    this.isCut = false;
    this.server = net.createServer((near) => {
      if (this.isCut) {
        near.resetAndDestroy();
        return;
      }
      this.accepted += 1;
      const far = net.connect(port, "127.0.0.1");
      for (const socket of [near, far]) {
        this.sockets.add(socket);
        socket.setNoDelay();
        socket.on("error", () => {});
        socket.on("close", (failed) => {
          this.sockets.delete(socket);
          // One that ends well takes the other along by itself, once that has sent what it still holds.
          if (failed) [near, far].forEach((side) => side.destroy());
        });
      }
      near.pipe(far).pipe(near);
    });
  }

  /** Ends all connections at once, without a word of either side, and lets no new ones through until it is mended. */
  cut() {
    this.isCut = true;
    for (const socket of this.sockets) socket.resetAndDestroy();
  }

  mend() {
    this.isCut = false;
  }

  close() {
    this.cut();
    this.server.close();
  }
}
