// The ids by which the server calls a node: inside subgraphs they name the way to it, as in "12:3".

/** All ids of a node: as many as there are places that use its subgraph, none while it is on no canvas. */
export function executionIds(node) {
  const { graph } = node;
  return graph ? waysTo(graph, graph.rootGraph ?? graph).map((way) => `${way}${node.id}`) : [];
}

/** What is before the ids of a graph's nodes, seen from a graph that may hold it. */
function waysTo(graph, outer) {
  if (graph === outer) return [""];
  const holders = outer.nodes.filter((node) => node.subgraph);
  return holders.flatMap((node) => waysTo(graph, node.subgraph).map((way) => `${node.id}:${way}`));
}
