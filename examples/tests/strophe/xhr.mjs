// What Strophe.js expects of a browser and Node does not have: XMLHttpRequest, as far as a BOSH client uses it.

import http from 'node:http';

// As a browser: connections are kept, six to a host.
const agent = new http.Agent({ keepAlive: true, maxSockets: 6 });

export class XMLHttpRequest {
    readyState = 0;
    status = 0;
    responseText = '';
    responseXML = null;
    onreadystatechange = () => {};
    #headers = {};
    #answered = {};
    #request;

    open(method, url) {
        this.#request = http.request(url, { method, agent }, (response) => {
            const chunks = [];
            response.on('data', (chunk) => chunks.push(chunk));
            response.on('error', () => this.#done());
            response.on('end', () => {
                this.status = response.statusCode;
                this.#answered = response.headers;
                this.responseText = Buffer.concat(chunks).toString('utf8');
                // A browser parses what is declared to be XML, and nothing else.
                if (/^(text|application)\/xml\b/.test(response.headers['content-type'] ?? '')) {
                    this.responseXML = new DOMParser().parseFromString(this.responseText, 'text/xml');
                }
                this.#done();
            });
        });
        this.#request.on('error', () => this.#done());
        this.#state(1);
    }

    setRequestHeader(name, value) {
        this.#headers[name] = value;
    }

    getAllResponseHeaders() {
        return Object.entries(this.#answered).map(([name, value]) => `${name}: ${value}\r\n`).join('');
    }

    send(data) {
        const body = Buffer.from(String(data));
        for (const [name, value] of Object.entries(this.#headers)) {
            this.#request.setHeader(name, value);
        }
        this.#request.setHeader('Content-Length', body.length);
        this.#request.end(body);
    }

    abort() {
        this.onreadystatechange = () => {};
        this.#request?.destroy();
    }

    #done() {
        if (this.readyState < 4) {
            this.#state(4);
        }
    }

    #state(state) {
        this.readyState = state;
        this.onreadystatechange();
    }
}
