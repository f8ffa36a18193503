# Built JavaScript and production packages on a slim Node, without a shell between the signal and the worker.

FROM node:24-bookworm-slim AS packages
WORKDIR /app
COPY package.json package-lock.json .npmrc ./
RUN npm ci --omit=dev --no-audit --no-fund

FROM node:24-bookworm-slim AS build
WORKDIR /app
COPY package.json package-lock.json .npmrc ./
RUN npm ci --no-audit --no-fund
COPY tsconfig.json tsconfig.build.json ./
COPY bin ./bin
COPY src ./src
RUN npm run build

FROM node:24-bookworm-slim
ENV NODE_ENV=production \
    AGENTD_HTTP_HOST=0.0.0.0 \
    AGENTD_HTTP_PORT=9464 \
    AGENTD_DATA_DIR=/var/lib/agentd
WORKDIR /app
COPY package.json LICENSE ./
COPY bin/agentd.js ./bin/agentd.js
COPY config ./config
COPY --from=packages /app/node_modules ./node_modules
COPY --from=build /app/dist ./dist
# The user node (1000) comes with the image. A named volume takes over the owner of the folder below it.
RUN ln -s /app/bin/agentd.js /usr/local/bin/agentd \
    && mkdir -p /var/lib/agentd && chown node:node /var/lib/agentd
USER node
VOLUME /var/lib/agentd
EXPOSE 9464
STOPSIGNAL SIGTERM
# Alive, not ready: a container whose database is away must not be restarted for it.
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s --retries=3 \
  CMD ["node", "-e", "fetch(`http://127.0.0.1:${process.env.AGENTD_HTTP_PORT}/livez`).then((r) => process.exit(r.ok ? 0 : 1), () => process.exit(1))"]
# Exec form: node is the process that SIGTERM reaches. It has handlers of its own, so it does without an init.
ENTRYPOINT ["node", "bin/agentd.js"]
CMD ["start"]
