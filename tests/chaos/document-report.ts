/** What kills in the middle of embedding have shown, and what of it must not be. */
import type { DocumentKill, DocumentKillReport } from './documents.ts';

/** Requests of a document at most that are not answered, or whose answers are not stored. */
const MOST_IN_FLIGHT = 8;

/** What broke, as sentences; none: everything held. */
export function brokenByKills(report: DocumentKillReport): string[] {
  const { kills, searched } = report;
  const lost = kills.reduce((sum, kill) => sum + kill.lost, 0);
  const most = Math.max(...kills.map((kill) => kill.open + kill.answered));
  const facts: readonly (readonly [boolean, string])[] = [
    [report.rejected.length > 0, `the peer refused ${JSON.stringify(report.rejected[0])}`],
    [
      searched.first === 0 || searched.second === 0,
      `editions were not both found: ${JSON.stringify(searched)}`,
    ],
    [searched.wrong > 0, `${searched.wrong} searches found neither edition, or both`],
    [searched.back > 0, `${searched.back} searches found the first edition after the second one`],
    [lost === 0, 'no kill hit anything'],
    [most > MOST_IN_FLIGHT, `${most} requests were in flight at a kill`],
    [
      report.repeats !== lost,
      `${report.repeats} passages were paid again, ${lost} were in flight and not stored`,
    ],
    [report.unexplained > 0, `${report.unexplained} passages were paid again and had been stored`],
    [report.hash !== report.undisturbed, 'the passages are not those of an undisturbed run'],
  ];
  return facts.flatMap(([isBroken, fact]) => (isBroken ? [fact] : []));
}

/** Lines to print. */
export function describeKills(report: DocumentKillReport): string[] {
  const { kills, searched } = report;
  const sum = (of: (kill: DocumentKill) => number): number => kills.reduce((all, kill) => all + of(kill), 0);
  const broken = brokenByKills(report);
  return [
    `${kills.length} kills in ${Math.round(report.seconds)} s, ${report.chunks} passages; in flight at the kills ${sum((k) => k.inFlight)}, paid again ${report.repeats}, paid again though stored ${report.unexplained}`,
    `${searched.first} searches found the first edition, then ${searched.second} the second, ${searched.wrong} neither or both; the longest took ${Math.round(searched.longestMs)} ms`,
    `passages, offsets and vectors: ${report.hash.slice(0, 16)}, undisturbed ${report.undisturbed.slice(0, 16)}`,
    ...broken.map((fact) => `BROKEN: ${fact}`),
    broken.length === 0 ? 'Everything held.' : `${broken.length} invariants broke.`,
  ];
}
