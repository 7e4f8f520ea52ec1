// What runs behind a preview in the stories: it shows what it was asked, and answers as it is told.
const http = require('http');
const net = require('net');
const crypto = require('crypto');

const server = http.createServer((req, res) => {
  const url = new URL(req.url, 'http://x');
  const asked = url.searchParams;
  switch (url.pathname) {
    case '/echo':
      res.writeHead(200, { 'content-type': 'application/octet-stream' });
      req.pipe(res);
      break;
    case '/flood': {
      let left = Number(asked.get('bytes'));
      const block = Buffer.alloc(65536, 'x');
      res.writeHead(200, asked.has('sized') ? { 'content-length': left } : {});
      const more = () => {
        while (left > 0) {
          const size = Math.min(left, block.length);
          left -= size;
          if (!res.write(block.subarray(0, size))) return res.once('drain', more);
        }
        res.end();
      };
      more();
      break;
    }
    case '/events':
      res.writeHead(200, { 'content-type': 'text/event-stream' });
      res.write('data: begun\n\n');
      break;
    case '/open':
      res.writeHead(200, { 'content-type': 'text/plain' });
      res.write('begun\n');
      break;
    case '/answer':
      res.statusCode = Number(asked.get('status') || 200);
      for (const pair of asked.getAll('header')) {
        const [name, ...value] = pair.split(': ');
        res.appendHeader(name, value.join(': '));
      }
      res.end('answered');
      break;
    case '/hang':
      break;
    case '/early':
      res.writeHead(413).end('too much');
      break;
    default: {
      const hash = crypto.createHash('sha256');
      let bytes = 0;
      req.on('data', (data) => { bytes += data.length; hash.update(data); });
      req.on('end', () => {
        const { method, url, headers, trailers, socket } = req;
        const seen = { method, url, headers, trailers, bytes, sha: hash.digest('hex'), socket: socket.remotePort };
        res.setHeader('content-type', 'application/json');
        res.end(JSON.stringify(seen));
      });
    }
  }
});

// A WebSocket that says everything back, and a protocol of its own that does too.
server.on('upgrade', (req, socket, head) => {
  const key = req.headers['sec-websocket-key'];
  const name = req.headers.upgrade;
  const accept = crypto.createHash('sha1').update(key + '258EAFA5-E914-47DA-95CA-C5AB0DC85B11').digest('base64');
  const proof = key ? `Sec-WebSocket-Accept: ${accept}\r\n` : '';
  socket.write(`HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: ${name}\r\nX-Origin: ${req.headers.origin}\r\n${proof}\r\n`);
  const say = (data) => {
    if (!key) return socket.write(data);
    const length = data[1] & 127;
    const mask = data.subarray(2, 6);
    const text = data.subarray(6, 6 + length).map((byte, at) => byte ^ mask[at % 4]);
    socket.write(Buffer.concat([Buffer.from([0x81, length]), text]));
  };
  if (head.length) say(head);
  socket.on('data', say);
  socket.on('error', () => {});
});

server.listen(process.env.PORT, process.env.AT || '127.0.0.1');
