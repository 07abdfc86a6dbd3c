// matrix-js-sdk 43 asks for Node 22; on Node 20 this one function is all it lacks.
Promise.withResolvers ??= function () {
  let resolve, reject;
  const promise = new this((a, b) => { resolve = a; reject = b; });
  return { promise, resolve, reject };
};
