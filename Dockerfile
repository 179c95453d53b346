# The image runs every command of `latchkey`, such as `docker run … latchkey migrate`. It needs an external Postgres;
# docker-compose.yml contains one.

FROM node:24-slim AS build
WORKDIR /app
COPY package.json package-lock.json ./
# No dependency needs its install script: argon2 contains prebuilt binaries.
RUN npm ci --ignore-scripts
COPY tsconfig.json tsconfig.build.json ./
COPY migrations migrations
COPY src src
# At run time, type declarations, source maps and the build stamp are not needed.
RUN npm run build && find dist -type f \( -name '*.d.ts' -o -name '*.map' -o -name .built \) -delete

# The binaries of the embedded Postgres are optional dependencies. They are omitted (ADR 0068), so `serve` requires
# DATABASE_URL and `try` does not work.
FROM node:24-slim AS dependencies
WORKDIR /app
COPY package.json package-lock.json ./
RUN npm ci --ignore-scripts --omit=dev --omit=optional && \
  find node_modules -type f \( -name '*.d.ts' -o -name '*.d.mts' -o -name '*.d.cts' -o -name '*.map' \) -delete && \
  rm -rf node_modules/[!@]*/test node_modules/[!@]*/tests node_modules/@*/*/test node_modules/@*/*/tests

FROM node:24-slim
ENV NODE_ENV=production HOST=0.0.0.0 PORT=8080
WORKDIR /app
COPY package.json LICENSE ./
COPY openapi openapi
COPY --from=dependencies /app/node_modules node_modules
COPY --from=build /app/dist dist
# The account `node` of the base image, as a number because Kubernetes checks runAsNonRoot only for numeric ids.
# /app is owned by root, so the service cannot modify its own code.
USER 1000:1000
EXPOSE 8080
# Liveness, not readiness: a restart of the service does not repair the database.
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
  CMD ["node", "-e", "fetch(`http://127.0.0.1:${process.env.PORT}/livez`).then(({ ok }) => process.exit(ok ? 0 : 1), () => process.exit(1))"]
ENTRYPOINT ["node", "--min-semi-space-size=16", "--heap-growing-percent=100", "dist/src/cli/latchkey.js"]
CMD ["serve"]
