/** How many tokens a call will need, learnt from those before it. */
import type { ModelUsage } from '../../providers/models.ts';
import { BYTES_PER_TOKEN } from './text.ts';

/** Tokens of an answer before one has been seen. */
const FIRST_ANSWER = 300;
/** Weight of the newest call. */
const WEIGHT = 0.1;

export class TokenEstimate {
  /** Tokens of the prompt for one that is guessed by its length. */
  #ratio = 1;
  #answer = FIRST_ANSWER;

  /** @param maxTokens upper bound of the answer */
  of(requestLength: number, maxTokens: number | null): number {
    const answer = Math.min(this.#answer, maxTokens ?? Number.POSITIVE_INFINITY);
    return Math.ceil((requestLength / BYTES_PER_TOKEN) * this.#ratio + answer);
  }

  learn(requestLength: number, usage: ModelUsage): void {
    const guessed = requestLength / BYTES_PER_TOKEN;
    // a provider's word, within reason
    const ratio = Math.min(4, Math.max(0.25, usage.promptTokens / Math.max(guessed, 1)));
    this.#ratio += WEIGHT * (ratio - this.#ratio);
    this.#answer += WEIGHT * (usage.completionTokens - this.#answer);
  }
}
